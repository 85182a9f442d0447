"""The public names have the types that a user's program relies on: `api.py` is checked, strictly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

pytest.importorskip("mypy")


def check(path: Path, cache: Path) -> str:
    """Return what mypy says of a program outside of the project, with no settings but its own."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context"),
            *("--config-file=", "--cache-dir", str(cache), "--follow-imports", "silent", str(path)),
        ],
        capture_output=True,
        text=True,
        cwd=cache,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        timeout=110,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def test_a_users_program_has_the_types_it_expects(cache: Path):
    assert check(HERE / "api.py", cache) == ""


def test_a_wrong_type_would_be_seen(cache: Path):
    path = cache / "wrong.py"
    path.write_text(
        "from hpcpool import HPCPoolExecutor\n"
        "def double(n: int) -> int:\n"
        "    return 2 * n\n"
        "text: str = HPCPoolExecutor().submit(double, 1).result()\n"
    )
    assert 'expression has type "int", variable has type "str"' in check(path, cache)
