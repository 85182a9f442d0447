"""A manager that is of another version than the client is refused, in words that help; the pool goes on with others."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool import BrokenPool, Config, HPCPoolExecutor
from hpcpool.wire.messages import PROTOCOL
from tests.live.folder_system import FolderSystem, folder_system
from tests.live.processes import PATIENCE_S, until

pytestmark = [pytest.mark.live, pytest.mark.once]

#: What makes a manager say of itself that it is another one, and the two sides as its refusal names them.
CLAIMS = {
    "Python": ("import platform\nplatform.python_version = lambda: '3.99.1'\n", "3.99"),
    "hpcpool protocol": ("import hpcpool.wire.versions\nhpcpool.wire.versions.PROTOCOL = 999\n", "999"),
}


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FolderSystem]:
    with folder_system(monkeypatch, tmp_path) as system:
        yield system


def claiming(folder: Path, text: str) -> dict[str, str]:
    """Environment variables by which each interpreter of a node runs this text first."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ["PYTHONPATH"]])}


def refusal(what: str, theirs: str) -> tuple[str, ...]:
    mine = {"Python": "3.", "hpcpool protocol": str(PROTOCOL)}[what]
    host = os.uname().nodename
    return (f"{what} differs: {mine}", f"{theirs} on {host}", f"Install the same {what} on both")


@pytest.mark.parametrize("what", CLAIMS)
def test_a_manager_of_another_version_is_refused_and_the_others_serve_on(what, system, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="hpcpool")
    text, theirs = CLAIMS[what]
    other = system.pool(name="other", env=claiming(tmp_path, text))
    with HPCPoolExecutor(Config(system.pool(name="own"), other)) as pool:
        pool.wait_for_workers(1, PATIENCE_S)
        until(lambda: "a manager was refused" in caplog.text, "the warning")
        assert all(words in caplog.text for words in refusal(what, theirs)), caplog.text
        assert [pool.submit(pow, 2, n).result(PATIENCE_S) for n in range(5)] == [1, 2, 4, 8, 16]
        assert [node.block for node in pool.status().nodes] == ["own-0"]
        until(lambda: pool.status().node_pools[1].last_failure, "the end of the block")
        assert all(words in pool.status().node_pools[1].last_failure for words in refusal(what, theirs))


@pytest.mark.parametrize("what", CLAIMS)
def test_when_no_manager_is_of_the_client_s_version_every_future_says_so(what, system, tmp_path):
    text, theirs = CLAIMS[what]
    config = Config(system.pool(env=claiming(tmp_path, text)), start_failure_limit=1)
    with HPCPoolExecutor(config) as pool:
        error = pool.submit(abs, -1).exception(PATIENCE_S)
    assert isinstance(error, BrokenPool)
    assert all(words in str(error) for words in refusal(what, theirs)), error
