"""The examples of the documentation run, and print what the pages say they print.

On a page, blocks fenced as ```python are run from top to bottom as one program, in an empty directory. A block fenced
as ```text right below one is its whole output. What is only to be read is fenced as ```py.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
import os
import pkgutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import hpcpool

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    page for page in sorted([*ROOT.glob("README.md"), *ROOT.glob("docs/**/*.md")]) if "```python" in page.read_text()
]
MODULES = [module.name for module in pkgutil.walk_packages(hpcpool.__path__, "hpcpool.")]

#: Printed behind each block, to tell the outputs apart.
SEPARATOR = "\x1e"


@dataclass
class Page:
    """The program of a page, and what its blocks (counted from 0) must print."""

    program: str
    outputs: dict[int, str] = field(default_factory=dict)


def read_page(text: str) -> Page:
    """Every line of the program stands where it stands on the page, so that tracebacks point at the page."""
    program: list[str] = []
    outputs: dict[int, str] = {}
    fence = ""
    count = 0
    follows_block = False
    for line in text.splitlines():
        if not fence and line.startswith("```"):
            fence = line.removeprefix("```").strip() or "plain"
            if fence == "text" and follows_block:
                outputs[count - 1] = ""
        elif fence and line == "```":
            count += fence == "python"
            program.append(f"print({SEPARATOR!r}, flush=True)" if fence == "python" else "")
            follows_block = fence == "python"
            fence = ""
            continue
        elif fence == "text" and follows_block:
            outputs[count - 1] += f"{line}\n"
        elif not fence and line.strip():
            follows_block = False
        program.append(line if fence == "python" and not line.startswith("```") else "")
    assert not fence, f"the last {fence} block is not closed"
    return Page("\n".join(program) + "\n", outputs)


def environment() -> dict[str, str]:
    """The pages run with hpcpool as it is installed; where it is not, with the source."""
    try:
        importlib.metadata.distribution("hpcpool")
    except importlib.metadata.PackageNotFoundError:
        return {**os.environ, "PYTHONPATH": str(ROOT)}
    return dict(os.environ)


@pytest.mark.live
@pytest.mark.once
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_examples_of_a_page_run(path, tmp_path):
    page = read_page(path.read_text(encoding="utf-8"))
    program = tmp_path / f"{path.stem}.py"
    program.write_text(page.program, encoding="utf-8")
    folder = tmp_path / "empty"
    folder.mkdir()
    command = [sys.executable, "-W", "error", program]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"{SEPARATOR}\n")
    assert {index: printed[index] for index in page.outputs} == page.outputs


@pytest.mark.live
@pytest.mark.once
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    try:
        # The first failure ends it. Otherwise doctest would report the time limit of this test, and go on.
        doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS, raise_on_error=True)
    except doctest.UnexpectedException as failure:
        raise failure.exc_info[1] from None
    except doctest.DocTestFailure as failure:
        pytest.fail(f"{failure.test.name}: {failure.example.source}gave {failure.got}", pytrace=False)


def test_a_page_is_read_block_by_block():
    page = read_page(
        "# Title\n```python\nx = 1\nprint(x)\n```\n\n```text\n1\n```\n```console\n$ rm\n```\n"
        "```py\nnever\n```\n```python\nx\n```\nsays\n```text\nnot its output\n```\n"
    )
    assert page.outputs == {0: "1\n"}
    lines = page.program.splitlines()
    assert [(number, line) for number, line in enumerate(lines, 1) if line] == [
        (3, "x = 1"),
        (4, "print(x)"),
        (5, "print('\\x1e', flush=True)"),
        (17, "x"),
        (18, "print('\\x1e', flush=True)"),
    ]
