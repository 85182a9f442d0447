"""The fork server of the node that the interchange hosts is started before it is wanted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcpool import Config, HPCPoolExecutor, NodePool
from hpcpool.providers import LocalProvider
from tests.live.folder_system import folder_system
from tests.live.processes import Pool, executor, until, until_heard

pytestmark = pytest.mark.live


def test_a_hosted_node_takes_the_one_that_is_there():
    with executor(1) as pool:
        processes = Pool.of(pool)
        assert len(processes.of_role("fork-server")) == 1
        log, entrance = Path(f"/proc/{processes.fork_server.pid}/fd/2"), processes.directory / "managers.sock"
        assert log.stat().st_mtime_ns <= entrance.stat().st_mtime_ns, "it was there before managers could come"


def test_none_is_started_where_no_node_is_hosted(monkeypatch, tmp_path):
    with folder_system(monkeypatch, tmp_path) as system:
        system.behave("hold", "Priority")
        with HPCPoolExecutor(Config(system.pool(init_blocks=1))) as pool:
            future = pool.submit(abs, 1)
            until(lambda: pool.status().blocks, "a block")
            assert Pool.below(os.getpid()).of_role("fork-server") == []
            future.cancel()


def test_one_that_is_not_wanted_goes_with_the_interchange():
    with HPCPoolExecutor(Config(NodePool(LocalProvider(), init_blocks=0))) as pool:
        pool.scale(0)  # the pool starts, and no block with it
        until_heard(pool)
        until(lambda: Pool.below(os.getpid()).of_role("fork-server"), "the fork server")
