"""The examples run as a user runs them: as scripts, with real input."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
import warnings
from collections import Counter
from pathlib import Path

import pytest

from hpcpool.providers import BlockRequest, JobState, JobStatus
from tests.conftest import wait_until

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SURVEY = EXAMPLES / "stdlib_survey.py"


@pytest.fixture(scope="module")
def survey():
    """The example as a module, to look at its pieces."""
    spec = importlib.util.spec_from_file_location("stdlib_survey", SURVEY)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks for its module there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def run_survey(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", SURVEY, "--workers", "2", "--limit", "2", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, **options)


@pytest.mark.live
@pytest.mark.once
def test_the_survey_gives_a_table_a_picture_and_a_comparison(tmp_path):
    done = run_survey(tmp_path, "--output", "out.png")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == "package files lines functions branches imports notes".split()
    total = lines[16].split()
    assert total[0] == "total"
    assert all(int(number.replace(",", "")) > 0 for number in total[1:])
    assert lines[-1].startswith("hpcpool ")
    assert lines[-1].endswith(" s, the same answer")
    assert "100%" in done.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.live
@pytest.mark.once
def test_the_survey_says_what_it_needs_for_bar_and_picture(tmp_path):
    for name in ("tqdm", "matplotlib"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('taken away')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run_survey(tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "no progress bar: tqdm is not installed (pip install 'hpcpool[progress]')",
        "no picture: matplotlib is not installed (pip install 'hpcpool[plot]')",
    ]
    assert "the same answer" in done.stdout
    assert list(tmp_path.glob("*.png")) == []


SOURCE = """\
import os, os.path as p
from xml.dom import minidom
from . import sibling


def one(a):
    try:
        return [x for x in a if x and os] if a else None
    except OSError:
        while True:
            pass


async def two():
    async for x in y:
        z = lambda: x
"""


def test_a_file_is_counted(survey, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    # Functions: one, two, the lambda. Branches: if/else, and, except, while, async for.
    assert survey.survey_file(path) == Counter(
        {"files": 1, "lines": 16, "functions": 3, "branches": 5, "imports": 2, "import os": 1, "import xml": 1}
    )


def test_a_file_that_is_no_python_is_counted_by_its_lines(survey, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def :\n'\n")
    assert survey.survey_file(path) == Counter(files=1, lines=2)


def test_warnings_about_the_files_are_not_shown(survey, tmp_path):
    path = tmp_path / "old.py"
    path.write_text("'\\d'\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert survey.survey_file(path)["lines"] == 1


def test_notes_are_read_from_the_output_of_uniq(survey):
    assert survey.survey_notes("      3 TODO\n     12 XXX\n") == Counter(notes=15)
    assert survey.survey_notes("") == Counter()


def test_surveys_add_up(survey):
    surveys = [Counter({"files": 1, "import os": 1}), Counter({"files": 1, "import os": 2, "import re": 1}), Counter()]
    assert survey.add_up(surveys) == Counter({"files": 2, "import os": 3, "import re": 1})
    assert survey.most_imported(survey.add_up(surveys), 1) == [("os", 3)]


def test_the_library_is_found_without_what_was_installed_into_it(survey):
    packages = survey.find_packages(limit=3)
    assert {"asyncio", "json", "(single modules)"} <= packages.keys()
    assert not {"site-packages", "dist-packages"} & packages.keys()
    assert all(0 < len(paths) <= 3 for paths in packages.values())


@pytest.mark.live
@pytest.mark.once
def test_a_provider_of_one_s_own_is_found_by_its_entry_point_and_runs_calls(tmp_path):
    folder = EXAMPLES / "custom_provider"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    (kind, place), *_ = project["entry-points"]["hpcpool.providers"].items()
    info = tmp_path / "hpcpool_nice-1.0.dist-info"  # what pip makes of it
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hpcpool.providers]\n{kind} = {place}\n")
    config = tmp_path / "config.toml"
    config.write_text('[[node_pools]]\nworkers_per_node = 1\nprovider = {kind = "nice", level = 3}\n')
    program = (
        "import os; from hpcpool import HPCPoolExecutor\n"
        f"with HPCPoolExecutor({str(config)!r}) as ex:\n"
        "    print(ex.submit(os.nice, 0).result(60) - os.nice(0), ex.status().blocks[0].state)\n"
    )
    paths = [str(tmp_path), str(folder), str(EXAMPLES.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, timeout=100
    )
    assert (done.stdout, done.stderr) == ("3 serving\n", "")
    assert list((tmp_path / ".hpcpool" / "journal").iterdir()) == []


@pytest.mark.live
@pytest.mark.once
def test_what_a_block_of_that_provider_says_when_it_fails_is_told(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES / "custom_provider"))
    from nice_provider import NiceDriver

    driver = NiceDriver(0, tmp_path)
    request = BlockRequest(
        block_id="b", nodes=1, command=(), cwd="/", stdout="", stderr="", script="echo no >&2; exit 3"
    )
    job = driver.submit(request)
    assert wait_until(lambda: driver.status([job])[job].state.is_over, 60)
    assert driver.status([job]) == {job: JobStatus(JobState.FAILED, 3, "exited with code 3", "no")}
