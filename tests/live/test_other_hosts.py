"""Nodes that share nothing with the client but the network: TLS with a key for each block, and data that crosses."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import ssl
from pathlib import Path

import numpy as np
import psutil
import pytest

from hpcpool import Config, HPCPoolExecutor, NodePool
from hpcpool.processes.dialling import Unreachable, dial
from hpcpool.providers import LocalProvider
from hpcpool.wire.messages import Heartbeat, Register, encode
from hpcpool.wire.versions import hello
from tests.live import calls, far
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, until
from tests.live.scripts import script
from tests.providers.ssh.streams import deaf_port

pytestmark = pytest.mark.live

MIB = 2**20


@pytest.fixture(autouse=True)
def _far_provider(monkeypatch, tmp_path):
    far.install(monkeypatch, tmp_path / "site")


def far_nodes(blocks: int = 1, **options) -> Config:
    return Config(NodePool(far.FarProvider(), workers_per_node=2, init_blocks=blocks, max_blocks=blocks), **options)


def managers(pool: HPCPoolExecutor) -> list[psutil.Process]:
    return Pool.below(os.getpid()).of_role("manager")


def connection_file(process: psutil.Process) -> Path:
    return Path(next(word for word in process.cmdline() if word.endswith("connection.json")))


def files_of(process: psutil.Process) -> Path:
    """The run directory of a node: its fork server has it as its working directory."""
    (fork_server,) = [child for child in process.children() if "fork-server" in child.cmdline()]
    return Path(fork_server.cwd())


def test_calls_run_on_another_host_and_leave_nothing_there():
    with executor(far_nodes()) as pool:
        (manager,) = managers(pool)
        home = files_of(manager)
        assert home != Pool.of(pool).directory
        assert list(pool.map(pow, range(100), range(100))) == [n**n for n in range(100)]
        addresses = {connection.raddr.port for connection in manager.net_connections("tcp") if connection.raddr}
        assert len(addresses) == 1
    assert not home.exists()
    assert not is_alive(manager.pid)
    assert not list(Path("/dev/shm").glob(f"{home.name}*"))


def test_a_large_argument_crosses_once_and_is_the_callers_own_in_each_call():
    array = np.arange(4 * MIB, dtype=np.uint8)
    with executor(far_nodes()) as pool:
        (manager,) = managers(pool)
        before = manager.io_counters().read_chars
        futures = [pool.submit(change, array, n) for n in range(20)]
        assert [future.result(PATIENCE_S) for future in futures] == [(n, 0) for n in range(20)]
        assert manager.io_counters().read_chars - before < 8 * MIB
        assert array[0] == 0


def change(array: np.ndarray, value: int) -> tuple[int, int]:
    array[0], before = value, array[0]
    return int(array[0]), int(before)


@pytest.mark.parametrize("size", [1, 20_000, 200_000, 3 * MIB + 1])
def test_results_of_any_size_come_back(size):
    with executor(far_nodes()) as pool:
        data = os.urandom(size)
        assert pool.submit(bytes, data).result(PATIENCE_S) == data
        array = pool.submit(np.full, size, 7, np.uint8).result(PATIENCE_S)
        assert array.shape == (size,)
        assert (array == 7).all()
        array[0] = 1  # it is the client's own


def test_what_is_put_and_what_calls_pass_on_crosses_and_is_freed():
    with executor(far_nodes()) as pool:
        directory = Pool.of(pool).directory
        table = pool.put(np.ones(2 * MIB, np.uint8))
        twice = pool.submit(np.add, table, table)
        assert int(pool.submit(np.sum, twice).result(PATIENCE_S)) == 4 * MIB
        del table, twice
        gc.collect()
        until(lambda: not [path for path in (directory / "shm").iterdir() if path.is_file() and path.name != "lock"])


@pytest.mark.once
def test_more_data_than_a_node_keeps_idle_goes_through_it():
    """Segments that no task refers to any more are dropped when they have become too many."""
    with executor(far_nodes()) as pool:
        home = files_of(managers(pool)[0])
        for n in range(12):
            assert pool.submit(len, bytes([n]) * (64 * MIB)).result(PATIENCE_S) == 64 * MIB
        until(lambda: bytes_in(home / "shm") <= 512 * MIB)


def bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is dropped in this moment
            total += path.stat().st_size if path.is_file() else 0
    return total


@pytest.mark.once
def test_the_calls_of_a_lost_host_run_on_another(tmp_path):
    gate = tmp_path / "gate"
    with executor(far_nodes(blocks=2)) as pool:
        until(lambda: len(managers(pool)) == 2)
        array = np.ones(MIB, np.uint8)
        running = [pool.submit(sum_behind, gate, array, n) for n in range(8)]
        until(lambda: sum(future.running() for future in running) >= 3)
        victim = managers(pool)[0]
        victim.kill()
        gate.touch()
        assert [future.result(PATIENCE_S) for future in running] == [MIB + n for n in range(8)]


def sum_behind(gate: Path, array: np.ndarray, n: int) -> int:
    calls.wait_for(gate)
    return int(array.sum()) + n


@pytest.mark.once
def test_the_end_of_a_block_on_this_machine_ends_nothing_of_other_pools():
    near = NodePool(LocalProvider(own_process=True), name="near", workers_per_node=1)
    with executor(Config(NodePool(far.FarProvider(), name="far", workers_per_node=1), near)) as pool:
        pool.wait_for_workers(2, timeout=PATIENCE_S)
        others = {process.pid for process in managers(pool) if process.cmdline()[-3].startswith("far")}
        pool.scale(0, pool="near")
        until(lambda: [block.pool for block in pool.status().blocks] == ["far"], "the end of the block that is near")
        assert len(others) == 1
        assert all(map(is_alive, others))
        assert pool.submit(abs, -3).result(PATIENCE_S) == 3


@pytest.mark.once
def test_who_has_no_key_of_the_run_gets_no_word_in():
    with executor(far_nodes()) as pool:
        (manager,) = managers(pool)
        connection = json.loads(connection_file(manager).read_text())
        port = int(connection["addresses"][0].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as bare:
            bare.sendall(b"\0" * 100_000)
            assert is_closed(bare)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE_S) as bare,
            context.wrap_socket(bare) as stranger,
            pytest.raises(OSError, match="certificate required|reset|closed|EOF"),
        ):
            stranger.sendall(b"hello")
            if not stranger.recv(1):
                raise ConnectionResetError("closed")
        assert pool.submit(abs, -3).result(PATIENCE_S) == 3
        log = (Pool.of(pool).directory / "interchange.log").read_text()
        assert log.count("turned away") == 2, log


def is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.once
def test_a_block_cannot_pass_for_another_and_its_key_ends_with_it():
    with executor(far_nodes(blocks=2)) as pool:
        until(lambda: len(pool.status().nodes) == 2, "both have registered")
        first, _ = managers(pool)
        connection = json.loads(connection_file(first).read_text())
        ways = connection["addresses"], connection["authority"].encode(), connection["key"].encode()
        with contextlib.closing(dial(*ways, PATIENCE_S)[0]) as stream:
            stream.send(encode([hello(), Register("default-77", "evil", 1, 1)]))
            until(lambda: not (stream.receive(), stream.is_open)[1], "it is dropped")
        log = Pool.of(pool).directory / "interchange.log"
        assert "has the key of block default-" in log.read_text()
        first.kill()
        until(lambda: "lost: its" in log.read_text())

        def is_refused() -> bool:
            with contextlib.closing(dial(*ways, PATIENCE_S)[0]) as stream:
                stream.send(encode([Heartbeat()]))
                until(lambda: not (stream.receive(), stream.is_open)[1])
            return "its key was revoked" in log.read_text()

        until(is_refused)
        assert pool.submit(abs, -3).result(PATIENCE_S) == 3


@pytest.mark.once
def test_an_interchange_that_cannot_be_reached_is_told_address_by_address():
    with executor(far_nodes()) as pool:
        (manager,) = managers(pool)
        connection = json.loads(connection_file(manager).read_text())
        authority, key = connection["authority"].encode(), connection["key"].encode()
        with socket.create_server(("127.0.0.1", 0)) as silent, deaf_port() as deaf:
            closed = f"tcp://127.0.0.1:{deaf}"
            mute = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(Unreachable) as caught:
                dial([closed, mute, "tcp://no.such.host.invalid:1"], authority, key, timeout_s=3.0)
        text = str(caught.value)
        assert f"{closed}: Connection refused" in text
        assert f"{mute}: no answer in 3 s" in text
        assert "tcp://no.such.host.invalid:1: " in text
        with contextlib.closing(dial([closed, *connection["addresses"]], authority, key, PATIENCE_S)[0]) as stream:
            assert stream.is_open, "one address that leads there is enough"


PROGRAM = """
import os
from hpcpool import HPCPoolExecutor, NodePool
from tests.live import far

pool = HPCPoolExecutor(NodePool(far.FarProvider(), workers_per_node=2))
print("on", *pool.submit(lambda: (os.getppid(), os.getcwd())).result(), flush=True)
pool.submit(__import__("time").sleep, 600).result()
"""


@pytest.mark.once
def test_when_the_client_is_killed_nothing_stays_on_the_other_host(tmp_path):
    with script(tmp_path / "program.py", PROGRAM) as program:
        program.wait_for("on ")
        fork_server = psutil.Process(int(program.out.split()[1]))
        manager = fork_server.parent()
        home = files_of(manager)
        os.kill(program.pid, signal.SIGKILL)
        until(lambda: not (is_alive(manager.pid) or is_alive(fork_server.pid) or home.exists()))


def test_data_goes_between_this_host_and_others_in_one_pool():
    near = NodePool(name="near", workers_per_node=1)
    apart = NodePool(far.FarProvider(), name="far", workers_per_node=1)
    with executor(Config(near, apart)) as pool:
        here, there = pool.options(pool="near"), pool.options(pool="far")
        table = pool.put(np.arange(MIB, dtype=np.uint8))
        value = here.submit(np.add, table, 1)
        for view in (there, here, there, there, here):
            value = view.submit(np.add, value, np.ones(MIB, np.uint8))
        expected = np.arange(MIB, dtype=np.uint8) + 6
        assert (value.result(PATIENCE_S) == expected).all()
        assert there.submit(len, b"x" * MIB).result(PATIENCE_S) == MIB
        assert [status.name for status in pool.status().node_pools] == ["near", "far"]


def die_where_told() -> None:
    if "DIES" in os.environ:
        os._exit(3)


@pytest.mark.once
def test_a_node_whose_workers_all_die_is_given_up_and_the_others_serve_on():
    good = NodePool(name="good", workers_per_node=1)
    bad = NodePool(far.FarProvider(), name="bad", workers_per_node=1, env={"DIES": "1"}, init_blocks=0)
    with executor(Config(good, bad), initializer=die_where_told) as pool:
        log = Pool.of(pool).directory / "interchange.log"
        doomed = pool.options(pool="bad").submit(abs, 1)
        until(lambda: "lost: workers die on" in log.read_text())
        assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8
        assert doomed.kill()
