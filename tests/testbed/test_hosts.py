"""Pools whose nodes are hosts with addresses and links of their own: what is reachable, what is cut, what heals."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import wait
from operator import sub
from pathlib import Path

import numpy as np
import psutil
import pytest

from hpcpool import BrokenPool, Config, HPCPoolExecutor, NodePool, ResultLost
from hpcpool.providers import SSHProvider
from tests.live import calls
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, until
from tests.testbed import placed, sshd
from tests.testbed.machine import require
from tests.testbed.namespaces import Host, hosts

pytestmark = pytest.mark.testbed

#: Short, so that a cut is noticed soon; and longer than a busy machine keeps anybody waiting.
SILENCE = {"heartbeat_period_s": 1.0, "heartbeat_timeout_s": 10.0}
#: For what begins when a cut has been noticed.
LONG_S = 60.0


@pytest.fixture
def pair() -> Iterator[list[Host]]:
    with hosts(2) as made:
        yield made


@pytest.fixture(autouse=True)
def _provider(monkeypatch, tmp_path):
    placed.install(monkeypatch, tmp_path / "site")


def pool_on(pair: list[Host], **options: object) -> Config:
    provider = placed.PlacedProvider(tuple((host.name, host.number) for host in pair))
    blocks = {"init_blocks": len(pair), "max_blocks": len(pair), "max_idle_time": None}
    return Config(NodePool(provider, workers_per_node=1, **blocks), **options)  # type: ignore[arg-type]


def managers() -> list[psutil.Process]:
    return Pool.below(os.getpid()).of_role("manager")


def wait_there(gate: Path, log: Path, argument: object = None) -> str:
    """Note the host, wait for the gate, return the host."""
    host = os.uname().nodename
    calls.note(log, f"{host}\n")
    calls.wait_for(gate)
    return host


def noted(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def test_each_host_finds_the_one_address_that_it_can_reach(pair, tmp_path):
    with executor(pool_on(pair)) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        running = [pool.submit(wait_there, tmp_path / "gate", tmp_path / "log") for _ in range(2)]
        until(lambda: len(noted(tmp_path / "log")) == 2)
        (tmp_path / "gate").touch()
        assert sorted(future.result(PATIENCE_S) for future in running) == [host.name for host in pair]
        peers = {c.raddr.ip.removeprefix("::ffff:") for m in managers() for c in m.net_connections("tcp") if c.raddr}
        assert peers <= {host.our_address for host in pair}
        assert len(bytes_of_a_mib := pool.submit(bytes, 2**20).result(PATIENCE_S)) == 2**20
        assert not any(bytes_of_a_mib)


def test_the_call_of_a_host_that_is_cut_off_runs_on_the_other_and_nothing_stays_there(pair, tmp_path):
    with executor(pool_on(pair, **SILENCE)) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        running = [pool.submit(wait_there, tmp_path / "gate", tmp_path / "log") for _ in range(2)]
        until(lambda: len(noted(tmp_path / "log")) == 2)
        there = {process.pid: process for process in managers()}
        pair[0].cut()
        until(lambda: sum(is_alive(pid) for pid in there) == 1, "the manager that is cut off ends itself", LONG_S)
        (tmp_path / "gate").touch()
        assert [future.result(LONG_S) for future in running] == [pair[1].name] * 2
        assert noted(tmp_path / "log")[2:] == [pair[1].name]


def test_a_cut_that_heals_in_time_costs_nothing(pair, tmp_path):
    with executor(pool_on(pair, heartbeat_period_s=0.3, heartbeat_timeout_s=60.0)) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        running = [pool.submit(wait_there, tmp_path / "gate", tmp_path / "log") for _ in range(2)]
        until(lambda: len(noted(tmp_path / "log")) == 2)
        before = {process.pid for process in managers()}
        for host in pair:
            host.cut()
        (tmp_path / "gate").touch()
        until(lambda: all_idle(before), "the calls have ended, and nobody hears of it")
        assert not any(future.done() for future in running)
        for host in pair:
            host.heal()
        assert sorted(future.result(LONG_S) for future in running) == [host.name for host in pair]
        assert sorted(noted(tmp_path / "log")) == [host.name for host in pair], "each ran once"
        assert {process.pid for process in managers()} == before


def all_idle(pids: set[int]) -> bool:
    """Whether no worker below these managers has used the processor for a while."""
    workers = [child for pid in pids for child in psutil.Process(pid).children(recursive=True)]

    def used() -> float:
        return sum(worker.cpu_times().user + worker.cpu_times().system for worker in workers)

    before, until_s = used(), time.monotonic() + 0.3
    while time.monotonic() < until_s:
        time.sleep(0.02)
    return used() == before


def test_a_kept_result_crosses_when_somebody_asks_and_once(pair, tmp_path):
    """Counted on the links, for a result of 16 MiB."""

    def crossed(way: str) -> list[int]:
        return [host.crossed(way) // 2**20 for host in pair]

    with executor(pool_on(pair)) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        at_first = crossed("rx")
        view = pool.options(keep=True)
        kept = view.submit(zeros, 16 * 2**20)
        for _ in range(10):
            kept = view.submit(np.add, kept, 1)
        assert pool.submit(np.max, kept).result(PATIENCE_S) == 10
        assert max(map(sub, crossed("rx"), at_first)) < 2, "all of them ran where it was"
        assert crossed("tx") == [0, 0]
        assert int(kept.result(PATIENCE_S)[0]) == 10
        home = max((0, 1), key=lambda index: crossed("rx")[index] - at_first[index])
        there = crossed("rx")[home] - at_first[home]
        assert 16 <= there < 20
        assert [pool.submit(np.max, kept).result(PATIENCE_S) for _ in range(10)] == [10] * 10
        assert int(kept.result()[-1]) == 10
        assert crossed("rx")[home] - at_first[home] < 20
        assert crossed("tx") == [0, 0]
        busy = pool.submit(wait_there, tmp_path / "gate", tmp_path / "log", kept)
        until(lambda: noted(tmp_path / "log") == [pair[home].name])
        assert [pool.submit(np.max, kept).result(PATIENCE_S) for _ in range(10)] == [10] * 10
        assert 16 <= crossed("tx")[1 - home] < 20, "once to the other"
        (tmp_path / "gate").touch()
        busy.result(PATIENCE_S)


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.uint8)


def test_what_was_kept_on_a_host_that_is_cut_off_is_lost(pair):
    with executor(pool_on(pair, **SILENCE)) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        kept = pool.options(keep=True).submit(zeros, 2**20)
        wait([kept], PATIENCE_S)
        for host in pair:
            host.cut()
        error = kept.exception(LONG_S)
        assert isinstance(error, ResultLost)
        assert "was kept at its node, and lost with it" in str(error)
        for host in pair:
            host.heal()


def test_a_host_that_reaches_no_address_says_what_it_has_tried(pair):
    pair[0].cut()
    with HPCPoolExecutor(pool_on(pair[:1], start_failure_limit=1)) as pool:
        error = pool.submit(abs, 1).exception(LONG_S)
    assert isinstance(error, BrokenPool)
    assert f"the interchange cannot be reached from {pair[0].name}" in str(error)
    assert f"tcp://{pair[1].our_address}:" in str(error)
    assert "tcp://127.0.0.1:" in str(error)
    assert "Connection refused" in str(error)


def test_hosts_are_reached_over_ssh_and_what_was_running_on_one_that_is_cut_off_runs_on_the_other(
    pair, tmp_path, monkeypatch
):
    require("openssh-server", "openssh-client")
    root = str(Path(__file__).resolve().parents[2])
    key = sshd.make_key(tmp_path / "key")
    servers = [
        sshd.Server(tmp_path / host.name, host.address, key, python_path=root, port=2222, prefix=host.command())
        for host in pair
    ]
    known = tmp_path / "known"
    try:
        for server in servers:
            server.folder.mkdir()
            server.start()
        known.write_text("".join(server.known_hosts_line() for server in servers))
        provider = SSHProvider(
            hosts=tuple(f"{host.address}:2222" for host in pair),
            identity=str(key),
            config="none",
            known_hosts=str(known),
            scratch=str(tmp_path / "scratch"),
        )
        node_pool = NodePool(provider, workers_per_node=1, init_blocks=2, max_blocks=2, max_idle_time=None)
        with executor(Config(node_pool, **SILENCE)) as pool:
            pool.wait_for_workers(2, PATIENCE_S)
            running = [pool.submit(wait_there, tmp_path / "gate", tmp_path / "log") for _ in range(2)]
            until(lambda: len(noted(tmp_path / "log")) == 2)
            pair[0].cut()
            until(lambda: noted(tmp_path / "log").count(pair[1].name) == 1)
            (tmp_path / "gate").touch()
            assert [future.result(LONG_S) for future in running] == [pair[1].name] * 2
            pair[0].heal()
    finally:
        for server in servers:
            server.stop()
