"""Block control's thread comes to its end, whatever fails in it. What it decides is tested in `tests/core`."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

from hpcpool.config import Config
from hpcpool.core.block_orders import Hopeless
from hpcpool.processes.block_control import BlockControl, Event, Finished
from hpcpool.processes.block_requests import Surroundings
from hpcpool.processes.hosted_driver import Host, Unhost
from hpcpool.processes.journal import Journal

PATIENCE_S = 30.0


class BadJournal(Journal):
    """Its file cannot be closed, as on a file system that has gone."""

    def close(self) -> None:
        raise OSError("stale file handle")


class Control:
    """Block control for a pool on this machine, and what it reports."""

    def __init__(self, folder: Path, journal: type[Journal] = Journal, *, fails_after: int | None = None) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self._looks_left = fails_after
        surroundings = Surroundings(str(folder), str(folder / "connection.json"), (-1, -1), lambda block, reach: None)
        self.control = BlockControl(
            Config(), surroundings, self._demands, self.events.put, journal(folder / "journal", str(folder), {})
        )
        self.control.start()

    def _demands(self) -> list:
        if self._looks_left is not None:
            self._looks_left -= 1
            if self._looks_left < 0:
                raise RuntimeError("a bug")
        return []

    def event(self) -> Event:
        return self.events.get(timeout=PATIENCE_S)


def test_the_interchange_is_told_of_the_end_even_if_something_cannot_be_closed(tmp_path, monkeypatch):
    unhandled: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda raised: unhandled.append(str(raised.exc_value)))
    control = Control(tmp_path, BadJournal)
    assert isinstance(control.event(), Host)
    control.control.stop(0.0)
    while not isinstance(event := control.event(), Finished):
        assert isinstance(event, Unhost)
    control.control.join(PATIENCE_S)
    assert unhandled == ["stale file handle"]


def test_blocks_are_ended_when_it_fails(tmp_path):
    control = Control(tmp_path, fails_after=1)
    assert isinstance(control.event(), Host)
    control.control.look()
    assert control.event() == Hopeless("block control failed: RuntimeError: a bug")
    assert isinstance(control.event(), Unhost)
    assert isinstance(control.event(), Finished)
    control.control.join(PATIENCE_S)
