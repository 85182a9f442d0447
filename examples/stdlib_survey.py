"""Survey the Python standard library's own source: a whole program on hpcpool, with input that every machine has.

Each file is a Python call and each package a bash call. What they find is added up by calls that take futures as
arguments, so the program waits for nothing but the end. Then `ProcessPoolExecutor` does the same work, for comparison.
"""

import argparse
import ast
import platform
import shlex
import subprocess
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from itertools import chain
from pathlib import Path

from hpcpool import HPCPoolExecutor

STDLIB = sysconfig.get_path("stdlib")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.BoolOp, ast.match_case)
#: Counts the notes that authors left for themselves. `{files}` becomes one quoted word for each file.
COUNT_NOTES = "cat {files} | grep -aowE 'TODO|FIXME|XXX|HACK' | sort | uniq -c"
#: How many results one call adds up.
FAN_IN = 16

#: What was found in one file, or in many. An import of `os` counts as "imports" and as "import os".
Survey = Counter[str]
COLUMNS = ("files", "lines", "functions", "branches", "imports", "notes")


# What the workers do


def survey_file(path: Path) -> Survey:
    source = Path(STDLIB, path).read_bytes()
    with warnings.catch_warnings(action="ignore"):
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):  # some are wrong on purpose, to test how Python complains
            nodes = []
    survey = Counter(files=1, lines=len(source.splitlines()))
    for node in nodes:
        modules = imported_modules(node)
        survey["functions"] += isinstance(node, FUNCTIONS)
        survey["branches"] += isinstance(node, BRANCHES)
        survey["imports"] += len(modules)
        survey.update(f"import {module}" for module in modules)
    return survey


def imported_modules(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return {node.module.partition(".")[0]}
    return set()


def survey_notes(output: object) -> Survey:
    """Read what `COUNT_NOTES` printed: lines of a number and a word. A `BashResult` as text is its output."""
    return Counter(notes=sum(int(line.split()[0]) for line in str(output).splitlines()))


def add_up(surveys: list[Survey]) -> Survey:
    return sum(surveys, Counter())


# The survey, twice


def survey_with_hpcpool(packages: dict[str, list[Path]], workers: int | None) -> dict[str, Survey]:
    with HPCPoolExecutor(max_workers=workers) as ex:

        def tree(parts: list[Future[Survey]]) -> Future[Survey]:
            """Add up in calls that wait for one another; nothing comes back here in between."""
            while len(parts) > 1:
                parts = [ex.submit(add_up, parts[start : start + FAN_IN]) for start in range(0, len(parts), FAN_IN)]
            return parts[0]

        files, totals = [], {}
        for package, paths in packages.items():
            notes = ex.submit(survey_notes, ex.bash(COUNT_NOTES, files=paths, cwd=STDLIB))
            surveys = [ex.submit(survey_file, path) for path in paths]
            files += surveys
            totals[package] = tree([notes, *surveys])
        totals["total"] = tree(list(totals.values()))

        for _ in with_progress_bar(as_completed(files), len(files)):
            pass
        return {package: total.result() for package, total in totals.items()}


def survey_with_process_pool(packages: dict[str, list[Path]], workers: int | None) -> dict[str, Survey]:
    """The same calls; but futures cannot be arguments, and a command needs a function that runs it."""
    with ProcessPoolExecutor(max_workers=workers) as ex:
        parts = {
            package: [ex.submit(run_and_survey_notes, paths), *(ex.submit(survey_file, path) for path in paths)]
            for package, paths in packages.items()
        }
        totals = {
            package: ex.submit(add_up, [part.result() for part in its_parts]) for package, its_parts in parts.items()
        }
        totals["total"] = ex.submit(add_up, [total.result() for total in totals.values()])
        return {package: total.result() for package, total in totals.items()}


def run_and_survey_notes(paths: list[Path]) -> Survey:
    command = COUNT_NOTES.format(files=shlex.join(map(str, paths)))
    done = subprocess.run(["bash", "-c", command], cwd=STDLIB, capture_output=True, text=True, check=True)
    return survey_notes(done.stdout)


def find_packages(limit: int | None) -> dict[str, list[Path]]:
    """The library's files by package, as paths in its folder; at most `limit` of each package."""
    packages: dict[str, list[Path]] = {}
    for path in sorted(path.relative_to(STDLIB) for path in Path(STDLIB).rglob("*.py")):
        package = path.parts[0] if len(path.parts) > 1 else "(single modules)"
        if package not in ("site-packages", "dist-packages"):
            packages.setdefault(package, []).append(path)
    return {package: paths[:limit] for package, paths in packages.items()}


# What the user sees


def with_progress_bar(items: Iterable[object], count: int) -> Iterable[object]:
    try:
        from tqdm import tqdm
    except ImportError:
        print("no progress bar: tqdm is not installed (pip install 'hpcpool[progress]')", file=sys.stderr)
        return items
    return tqdm(items, total=count, unit=" files")


def largest(surveys: dict[str, Survey], count: int = 15) -> list[tuple[str, Survey]]:
    packages = [(package, survey) for package, survey in surveys.items() if package != "total"]
    return sorted(packages, key=lambda item: item[1]["lines"], reverse=True)[:count]


def most_imported(survey: Survey, count: int) -> list[tuple[str, int]]:
    modules = {key.removeprefix("import "): times for key, times in survey.items() if key.startswith("import ")}
    return Counter(modules).most_common(count)


def print_table(surveys: dict[str, Survey]) -> None:
    print(f"{'package':<18}", *(f"{column:>10}" for column in COLUMNS))
    for package, survey in [*largest(surveys), ("total", surveys["total"])]:
        print(f"{package:<18}", *(f"{survey[column]:>10,}" for column in COLUMNS))
    modules = (f"{module} ({times:,})" for module, times in most_imported(surveys["total"], 8))
    print(f"most imported: {', '.join(modules)}")


def draw(surveys: dict[str, Survey], output: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'hpcpool[plot]')", file=sys.stderr)
        return
    total = surveys["total"]
    figure = Figure(figsize=(12, 6), layout="constrained")
    size = f"{total['lines']:,} lines in {total['files']:,} files"
    figure.suptitle(f"The standard library of Python {platform.python_version()}: {size}")
    sizes, imports = figure.subplots(1, 2)

    packages = largest(surveys)[::-1]  # the last one is on top
    bars = sizes.barh([package for package, _ in packages], [survey["lines"] for _, survey in packages])
    densities = (100 * survey["branches"] / max(survey["lines"], 1) for _, survey in packages)
    sizes.bar_label(bars, [f"{density:.0f}" for density in densities], padding=3)
    sizes.set_title("Lines of the largest packages (with branches per 100 lines)")
    sizes.xaxis.set_major_formatter("{x:,.0f}")

    modules = most_imported(total, 15)[::-1]
    bars = imports.barh([module for module, _ in modules], [times for _, times in modules], color="tab:green")
    imports.bar_label(bars, fmt="{:,.0f}", padding=3)
    imports.set_title("Imports of the most imported modules")

    for axes in (sizes, imports):
        axes.margins(x=0.1, y=0.01)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=120)
    print(f"picture: {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, help="worker processes; default: one for each core")
    parser.add_argument(
        "--output", type=Path, default=Path("stdlib_survey.png"), help="where to draw; default: %(default)s"
    )
    parser.add_argument("--limit", type=int, help="at most so many files of each package; default: all")
    arguments = parser.parse_args()

    packages = find_packages(arguments.limit)
    for path in chain.from_iterable(packages.values()):
        Path(STDLIB, path).read_bytes()  # now, or the first survey would wait for the disk and the second would not
    started = time.perf_counter()
    surveys = survey_with_hpcpool(packages, arguments.workers)
    hpcpool_s = time.perf_counter() - started
    started = time.perf_counter()
    expected = survey_with_process_pool(packages, arguments.workers)
    process_pool_s = time.perf_counter() - started

    print_table(surveys)
    draw(surveys, arguments.output)
    answer = "the same answer" if surveys == expected else "DIFFERENT ANSWERS"
    print(f"hpcpool {hpcpool_s:.2f} s, ProcessPoolExecutor {process_pool_s:.2f} s, {answer}")
    sys.exit(surveys != expected)


if __name__ == "__main__":  # for ProcessPoolExecutor, whose workers may import this file; hpcpool needs no such line
    main()
