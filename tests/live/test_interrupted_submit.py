"""Ctrl-C inside of `submit` itself: such a call runs once or not at all, and the pool goes on."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import pytest

from tests.interrupts import interrupted_at
from tests.live import calls
from tests.live.processes import PATIENCE_S, executor, until

pytestmark = pytest.mark.live

#: What runs between `submit` and the socket.
FILES = (
    *("hpcpool/calls.py", "hpcpool/executor.py", "hpcpool/wire/payload.py", "hpcpool/wire/functions.py"),
    *("processes/client.py", "processes/sender.py", "processes/blob_ledger.py", "processes/task_future.py"),
    *("processes/ticket.py", "wire/stream.py"),
)


@pytest.mark.parametrize("is_busy", [False, True], ids=["an idle pool", "a busy pool"])
def test_ctrl_c_may_strike_anywhere_in_submit(tmp_path: Path, is_busy: bool):
    log, gate = tmp_path / "log", tmp_path / "gate"
    with executor(1) as pool:
        pool.submit(calls.note, log, "first").result(PATIENCE_S)
        if is_busy:
            pool.submit(calls.wait_for, gate)
        submitted: list[str] = []
        place, has_struck = -1, True
        while has_struck or place < 1:
            place += 1
            if not is_busy:
                until(lambda: pool._client._asleep)
            with contextlib.suppress(KeyboardInterrupt), interrupted_at(place, *FILES) as interrupter:
                pool.submit(calls.note, log, str(place))
                submitted.append(str(place))
            has_struck = interrupter.has_struck
        gate.touch()
        assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8
        pool.shutdown()
        assert pool._client._tickets == {}
    runs = Counter(log.read_text().split())
    assert place > 10
    assert set(submitted) <= set(runs)
    assert set(runs.values()) == {1}
