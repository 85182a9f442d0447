"""Managers whose tunnel breaks: their calls run on, each once, and what cannot come back is run elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import psutil
import pytest

from hpcpool import BrokenPool, HPCPoolExecutor, TaskFuture, TaskKilled
from hpcpool.processes.connection import TUNNEL, Connection, write_connection
from hpcpool.processes.dialling import connect, dial
from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.guests import Guests
from hpcpool.processes.start_command import start_command
from hpcpool.wire.messages import Heartbeat, Register, Rejoin, Welcome, encode
from hpcpool.wire.setup import local_setup
from hpcpool.wire.stream import Message, Stream
from hpcpool.wire.tls import REJOIN_PROTOCOL, TlsEnd, client_context
from hpcpool.wire.versions import hello
from tests.live import calls, far
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, until
from tests.live.tunnel import Tunnel, tunnel

pytestmark = [pytest.mark.live, pytest.mark.once]

MIB = 2**20


@pytest.fixture(autouse=True)
def _far_provider(monkeypatch, tmp_path):
    far.install(monkeypatch, tmp_path / "site")


@pytest.fixture
def way(tmp_path):
    with tunnel(tmp_path / "tunnel") as opened:
        yield opened


def manager() -> psutil.Process:
    (process,) = Pool.below(os.getpid()).of_role("manager")
    return process


def log() -> str:
    return (Pool.below(os.getpid()).directory / "interchange.log").read_text()


def waiting(pool: HPCPoolExecutor, gate: Path) -> TaskFuture[int]:
    """A call that has started, and returns when the gate is there."""
    started = gate.with_name("started")
    future = pool.submit(calls.wait_for, gate, started)
    until(started.exists)
    return future


def note_and_add(path: Path, number: int) -> int:
    with path.open("a") as file:
        file.write(f"{number}\n")
    return number + 1


def runs(path: Path) -> list[int]:
    return sorted(map(int, path.read_text().split()))


def test_calls_run_on_while_the_tunnel_is_broken_and_none_runs_twice(way, tmp_path):
    gate, noted = tmp_path / "gate", tmp_path / "noted"
    with executor(way.config()) as pool:
        running = waiting(pool, gate)
        way.shut()
        until(lambda: "cut off" in log(), "the interchange sees that it is broken")
        assert [node.is_cut_off for node in pool.status().nodes] == [True]
        later = [pool.submit(note_and_add, noted, n) for n in range(100)]
        gate.touch()
        way.open()
        assert isinstance(running.result(PATIENCE_S), int)
        assert [future.result(PATIENCE_S) for future in later] == list(range(1, 101))
        assert runs(noted) == list(range(100))
        assert running.info.attempt == 1
        assert "back over another connection" in log()
        assert [node.is_cut_off for node in pool.status().nodes] == [False]


def test_results_that_are_on_their_way_when_it_breaks_arrive(way, tmp_path):
    noted = tmp_path / "noted"
    data = np.arange(MIB, dtype=np.uint8)
    with executor(way.config()) as pool:
        futures = [pool.submit(note_and_add, noted, n) for n in range(3000)]
        large = [pool.submit(np.add, data, n) for n in range(40)]
        for broken in range(1, 6):
            carried = way.carried
            until(lambda carried=carried: way.carried > carried + MIB or all(f.done() for f in large))
            way.break_all()
            until(lambda broken=broken: log().count("back over") == broken)
        assert [future.result(PATIENCE_S) for future in futures] == list(range(1, 3001))
        for n, future in enumerate(large):
            assert (future.result(PATIENCE_S) == data + np.uint8(n)).all()
        assert runs(noted) == list(range(3000))


def test_a_tunnel_that_carries_nothing_any_more_is_given_up_in_time(way, tmp_path):
    noted = tmp_path / "noted"
    with executor(way.config(heartbeat_timeout_s=10.0)) as pool:
        first = manager()
        way.freeze_all()
        futures = [pool.submit(note_and_add, noted, n) for n in range(100)]
        assert [future.result(PATIENCE_S) for future in futures] == list(range(1, 101))
        assert runs(noted) == list(range(100))
        assert manager().pid == first.pid


def test_a_tunnel_that_falls_silent_for_a_while_loses_no_call(way, tmp_path):
    gate = tmp_path / "gate"
    with executor(way.config(heartbeat_timeout_s=20.0)) as pool:
        running = waiting(pool, gate)
        way.stall()
        until(lambda: way.stalled > 1, "the manager has given it up")
        way.resume()
        until(lambda: "back over another connection" in log())
        gate.touch()
        assert isinstance(running.result(PATIENCE_S), int)
        assert running.info.attempt == 1
        assert "lost" not in log()


def test_a_tunnel_that_was_not_asked_yet_is_not_silent(way):
    with executor(way.config(heartbeat_period_s=4.0, heartbeat_timeout_s=7.0)) as pool:
        pool.submit(time.sleep, 5.0).result(PATIENCE_S)
        assert "cut off" not in log()
        assert "back over" not in log()


def test_a_cut_off_call_can_be_killed_and_a_kept_result_fetched_when_it_is_back(way, tmp_path):
    gate = tmp_path / "gate"
    with executor(way.config()) as pool:
        kept = pool.options(keep=True).submit(np.ones, MIB, np.uint8)
        wait([kept], PATIENCE_S)
        running = waiting(pool, gate)
        until(running.running, "the client knows that it runs")
        way.shut()
        until(lambda: "cut off" in log())
        running.kill()
        with pytest.raises(TimeoutError):
            kept.result(timeout=0.2)
        way.open()
        assert int(kept.result(PATIENCE_S).sum()) == MIB
        assert isinstance(running.exception(PATIENCE_S), TaskKilled)
        assert pool.submit(abs, -3).result(PATIENCE_S) == 3


def test_who_is_away_for_too_long_is_lost_and_its_calls_run_elsewhere(way, tmp_path):
    gate = tmp_path / "gate"
    with executor(way.config(heartbeat_timeout_s=3.0)) as pool:
        running = waiting(pool, gate)
        first = manager()
        way.shut()
        until(lambda: "lost: cut off, and has not come back" in log())
        until(lambda: not is_alive(first.pid), "it does not wait for ever either")
        way.open()
        gate.touch()
        assert isinstance(running.result(PATIENCE_S), int)
        assert running.info.attempt == 2


def test_an_end_in_order_may_be_that_of_something_on_the_way(way, tmp_path):
    gate = tmp_path / "gate"
    with executor(way.config()) as pool:
        running = waiting(pool, gate)
        way.end_all()
        until(lambda: "back over another connection" in log())
        gate.touch()
        assert isinstance(running.result(PATIENCE_S), int)
        assert running.info.attempt == 1


def test_a_manager_that_has_died_behind_a_tunnel_is_not_waited_for_long(way, tmp_path):
    gate = tmp_path / "gate"
    with executor(way.config(heartbeat_timeout_s=600.0)) as pool:
        running = waiting(pool, gate)
        manager().kill()
        gate.touch()
        assert isinstance(running.result(PATIENCE_S), int)
        assert running.info.attempt == 2


def test_who_was_taken_for_lost_is_turned_away_and_leaves(way, tmp_path):
    gate = tmp_path / "gate"
    with executor(way.config(heartbeat_timeout_s=4.0)) as pool:
        running = waiting(pool, gate)
        first = manager()
        home = Path(next(child.cwd() for child in first.children() if "fork-server" in child.cmdline()))
        first.send_signal(signal.SIGSTOP)  # it does not notice how long it is away
        way.break_all()
        until(lambda: "lost: cut off, and has not come back" in log())
        first.send_signal(signal.SIGCONT)
        until(lambda: not is_alive(first.pid) and not home.exists(), "it has gone")
        gate.touch()
        assert isinstance(running.result(PATIENCE_S), int)


def test_when_the_interchange_dies_a_tunnelled_manager_is_ended_and_leaves_nothing(way, tmp_path):
    gate = tmp_path / "gate"
    with executor(way.config(heartbeat_timeout_s=3.0)) as pool:
        running = waiting(pool, gate)
        process = manager()
        home = Path(next(child.cwd() for child in process.children() if "fork-server" in child.cmdline()))
        Pool.below(os.getpid()).interchange.kill()
        assert isinstance(running.exception(PATIENCE_S), BrokenPool)
        until(lambda: not is_alive(process.pid) and not home.exists(), "all of the node is gone")


def test_a_pool_ends_well_while_its_manager_is_cut_off(way: Tunnel):
    with executor(way.config(heartbeat_timeout_s=10.0)) as pool:
        assert pool.submit(abs, -3).result(PATIENCE_S) == 3
        process = manager()
        way.shut()
        until(lambda: "cut off" in log())
    until(lambda: not is_alive(process.pid))


def test_a_manager_whose_block_is_over_for_the_interchange_does_not_come_back_for_ever(tmp_path):
    """The interchange is the test: it lives, but its door stays closed to the manager from then on."""
    loop, came = EventLoop(), list[Stream]()
    path = str(tmp_path / "connection.json")
    with contextlib.closing(Guests(loop, (0, 0), lambda stream, block: came.append(stream), {})) as guests:
        authority, key = guests.keys.authority.decode(), guests.keys.issue("p-0").decode()
        write_connection(path, Connection([f"{TUNNEL}127.0.0.1:{guests.port}"], "fork", authority=authority, key=key))
        with subprocess.Popen(start_command("manager", path, "p-0", -1, -1), stderr=subprocess.PIPE) as process:
            try:
                until(lambda: (loop.wait(0.05), came)[1], "it comes in")
                came[0].send(encode([Welcome(1, "fork", 0, local_setup(None, None, ()), 0.5, 2.0)]))
                heard: list[Message] = []
                until(lambda: heard.extend(came[0].receive()) or len(heard) > 1, "it is welcome")
                guests.keys.revoke("p-0")
                came[0].close()
                until(lambda: (loop.wait(0.05), process.poll())[1] is not None, "it gives up")
                assert process.stderr is not None
                assert b"interchange lost silent_s=" in process.stderr.read()
            finally:
                process.kill()


NOT_KNOWN = {
    "another token": encode([Rejoin(b"x" * 16, 0)]),
    "no token": encode([Rejoin(b"", 0)]),
    "nothing at all": encode([]),
    "another message": encode([Heartbeat()]),
    "no message": b"\xc1\xc1",
}


@pytest.mark.parametrize("said", NOT_KNOWN.values(), ids=NOT_KNOWN)
def test_who_is_not_known_does_not_come_back(way, said):
    with executor(way.config()) as pool:
        file = next(word for word in manager().cmdline() if word.endswith("connection.json"))
        connection = json.loads(Path(file).read_text())
        context = client_context(connection["authority"].encode(), connection["key"].encode())
        context.set_alpn_protocols([REJOIN_PROTOCOL])
        end, _ = connect(connection["addresses"], context, PATIENCE_S)
        with contextlib.closing(Stream(TlsEnd(end))) as stream:
            stream.send(said)
            until(lambda: not (stream.receive(), stream.is_open)[1], "it is turned away")
        until(lambda: "turned away" in log())
        assert pool.submit(abs, -3).result(PATIENCE_S) == 3


def test_a_manager_cannot_leave_a_token_behind_that_leads_nowhere(way):
    with executor(way.config()) as pool:
        file, block = manager().cmdline()[-4:-2]
        connection = json.loads(Path(file).read_text())
        ways = connection["addresses"], connection["authority"].encode(), connection["key"].encode()
        with contextlib.closing(dial(*ways, PATIENCE_S)[0]) as stream:
            twice = [Register(block, "evil", 1, 1, token=token * 16) for token in (b"x", b"y")]
            stream.send(encode([hello(), *twice]))
            until(lambda: not (stream.receive(), stream.is_open)[1], "it is dropped")
        assert "it registered twice" in log()
        for token in (b"x", b"y"):
            context = client_context(*ways[1:])
            context.set_alpn_protocols([REJOIN_PROTOCOL])
            end, _ = connect(ways[0], context, PATIENCE_S)
            with contextlib.closing(Stream(TlsEnd(end))) as stream:
                stream.send(encode([Rejoin(token * 16, 0)]))
                until(lambda stream=stream: not (stream.receive(), stream.is_open)[1], "it is turned away")
        assert pool.submit(abs, -3).result(PATIENCE_S) == 3
