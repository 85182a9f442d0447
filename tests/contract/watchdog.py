"""A time limit that comes back: it interrupts the main thread again and again until it is left.

pytest's own limit strikes once. unittest then goes on with `tearDown`, where a pool that hangs will hang again; and two
tests of the suite use SIGALRM themselves, which takes pytest's limit away from them.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TimeLimitPassedError(AssertionError):
    """The test ran longer than its limit; the stacks of all threads are on stderr."""


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raises `TimeLimitPassedError` in the main thread every `limit_s` seconds, whatever it waits for."""

    def on_signal(_number: int, _frame: object) -> None:
        faulthandler.dump_traceback(sys.__stderr__)
        raise TimeLimitPassedError(f"still running after {limit_s:g} s")

    done = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        while not done.wait(limit_s):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, on_signal)
    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
