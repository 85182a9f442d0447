"""A node whose interpreter is really of another version: it can run hpcpool, and is refused."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from hpcpool import BrokenPool, Config, HPCPoolExecutor
from hpcpool.providers.ssh.wheel import REQUIREMENTS
from tests.live.folder_system import FolderSystem, folder_system
from tests.live.processes import PATIENCE_S
from tests.testbed.machine import missing, until

#: The first test installs another Python's packages, too.
pytestmark = [pytest.mark.testbed, pytest.mark.timeout(170)]

MINORS = [minor for minor in (11, 12, 13, 14) if minor != sys.version_info.minor]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The path and the version of another Python that has all that hpcpool needs."""
    folder = tmp_path_factory.mktemp("other-python")
    if not any(_succeeds(command, "-m", "venv", str(folder)) for command in _commands()):
        missing("there is no other Python with the module venv")
    python = str(folder / "bin" / "python")
    pins = [f"{name}=={metadata.version(name)}" for name in REQUIREMENTS]
    if not _succeeds(python, "-m", "pip", "install", "--quiet", *pins):
        missing(f"{' '.join(pins)} cannot be installed for another Python")
    code = "import platform; print(platform.python_version())"
    version = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return python, version


def _commands() -> list[str]:
    """Other Pythons; pyenv may offer a name that stands for nothing."""
    found = [shutil.which(f"python3.{minor}") for minor in MINORS]
    return [command for command in found if command is not None]


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False, timeout=100).returncode == 0


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FolderSystem]:
    with folder_system(monkeypatch, tmp_path) as system:
        yield system


def test_a_node_with_another_python_is_refused_and_the_others_serve_on(system, other):
    python, version = other
    with HPCPoolExecutor(Config(system.pool(name="own"), system.pool(name="other", python=python))) as pool:
        pool.wait_for_workers(1, PATIENCE_S)
        told = until(lambda: pool.status().node_pools[1].last_failure, "the end of the other block")
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1
        assert [node.block for node in pool.status().nodes] == ["own-0"]
    assert f"Python {platform.python_version()}" in told
    assert f"Python {version}" in told
    assert "name a fitting interpreter with python= of the node pool" in told


def test_where_all_nodes_have_another_python_every_future_says_so(system, other):
    python, version = other
    with HPCPoolExecutor(Config(system.pool(python=python), start_failure_limit=1)) as pool:
        error = pool.submit(abs, -1).exception(PATIENCE_S)
    assert isinstance(error, BrokenPool)
    for words in ("Python differs", f"Python {platform.python_version()}", f"Python {version}"):
        assert words in str(error)
