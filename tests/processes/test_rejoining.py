"""Managers that are cut off, as the interchange sees them. Whole pools whose tunnels break are in `tests/live`."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from hpcpool.core.silence import Silence
from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.peer import Peer
from hpcpool.processes.registrar import nodes
from hpcpool.processes.rejoining import Rejoining
from hpcpool.processes.streams import Streams
from hpcpool.wire.lasting_stream import LastingStream
from hpcpool.wire.messages import Heartbeat, Rejoin
from hpcpool.wire.stream import Message, Stream
from hpcpool.wire.versions import hello
from tests.core.schedulers import A, B, leases, scheduler, submit


class Desk:
    """Two managers with two slots each, whose connections can be broken."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.streams = Streams(self.loop)
        self.scheduler = scheduler(a=(2, 4), b=(2, 4))
        self.managers = {
            name: Peer(hello(), block="p-0", proved="p-0", registered=True, slots=2, limit=4) for name in (A, B)
        }
        self.silence = Silence(1.0, 30.0)
        self.rejoining = Rejoining(self.loop, self.streams, self.managers, self.scheduler, self.silence, self.hear)
        self.others: dict[bytes, LastingStream] = {}
        self.was_cut_off: dict[bytes, bool] = {}
        self.is_leaving = False
        for name in (A, B):
            ours, self.others[name] = map(LastingStream, socket.socketpair())
            self.streams.add(name, ours, self.hear)
            self.rejoining.expect(name, b"token of " + name)

    def hear(self, name: bytes, messages: list[Message], is_open: bool) -> None:
        if not is_open:
            self.was_cut_off[name] = self.rejoining.cut_off(name, is_leaving=self.is_leaving)

    def break_off(self, name: bytes) -> None:
        """What is closed with something unread in it is reset."""
        self.streams.send(name, [Heartbeat()])
        self.others[name].close()
        self.loop.wait(0)

    def close(self) -> None:
        for other in self.others.values():
            other.close()
        self.streams.close()
        self.rejoining.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    with contextlib.closing(Desk()) as desk:
        yield desk


@pytest.mark.parametrize(("is_broken", "silent_at_s"), [(False, 5), (True, 30)])
def test_who_has_probably_died_is_waited_for_a_few_seconds_only(desk, monkeypatch, is_broken, silent_at_s):
    monkeypatch.setattr("hpcpool.processes.rejoining.time.monotonic", lambda: 100.0)
    for name in (A, B):
        desk.silence.heard(name, 100.0)
    assert desk.silence.look(100.0) == []
    if is_broken:
        desk.break_off(A)
    else:
        desk.others[A].close()
        desk.loop.wait(0)
    assert desk.was_cut_off == {A: True}
    desk.silence.heard(B, 100.0 + silent_at_s)
    silent = [name for second in range(1, silent_at_s + 10) for name, _ in desk.silence.look(100.0 + second)]
    assert silent[0] == A
    assert desk.silence.look(100.0 + silent_at_s) == []
    assert [desk.rejoining.has_ended(name) for name in (A, B)] == [not is_broken, False]
    assert [desk.rejoining.reason(name) for name in (A, B)] == ["cut off, and has not come back", ""]


@pytest.mark.parametrize("needs", [{}, {"cores": 2}], ids=["narrow", "wide"])
def test_who_is_cut_off_gets_no_calls_even_with_free_slots(desk, needs):
    desk.break_off(A)
    assert desk.was_cut_off == {A: True}
    assert [state.is_cut_off for state in nodes(desk.managers, desk.scheduler)] == [True, False]
    submit(desk.scheduler, *range(10), **needs)
    assert list(leases(desk.scheduler)) == [B]


def test_managers_with_the_same_token_are_forgotten_one_by_one(desk):
    desk.rejoining.expect(B, b"token of a")
    for name in (A, B, A):
        desk.rejoining.forget(name)
    desk.break_off(B)
    assert desk.was_cut_off == {B: False}


@pytest.mark.parametrize("is_broken", [True, False])
def test_a_manager_that_is_leaving_is_waited_for_only_if_its_connection_broke(desk, is_broken):
    """It may still have calls; an end in order is its own."""
    desk.is_leaving = True
    if is_broken:
        desk.break_off(A)
    else:
        desk.others[A].close()
        desk.loop.wait(0)
    assert desk.was_cut_off == {A: is_broken}


def test_who_is_retiring_gets_no_calls_when_it_is_back_either(desk):
    desk.managers[A].is_retiring = True
    desk.break_off(A)
    ours, theirs = map(Stream, socket.socketpair())
    desk.rejoining._take_back(ours, "p-0", [Rejoin(b"token of a", 0)])
    assert not desk.managers[A].is_cut_off
    submit(desk.scheduler, *range(10))
    assert list(leases(desk.scheduler)) == [B]
    theirs.close()
