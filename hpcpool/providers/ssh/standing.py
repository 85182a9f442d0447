"""Holds something that may be lost, such as a tunnel: when it ends it is made anew, until it is not wanted any more.

One thread waits for its end, so nobody has to look.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from hpcpool.errors import ConfigError

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 30.0
#: What was up for so long was well. What ends sooner, time and again, is made anew with the pauses of what fails.
_WELL_S = 5.0


class Ending(Protocol):
    """Something that is there from the start, and may end at any time."""

    def wait_for_end(self) -> None:
        """Return when it has ended, also by `close`."""

    def close(self) -> None:
        """End it, without waiting for anybody else; a second call does nothing."""


_E = TypeVar("_E", bound=Ending)


def pause_after(attempts: int) -> float:
    """Seconds before the next attempt, after so many attempts since it was last well.

    >>> [pause_after(attempts) for attempts in range(8)]
    [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    """
    return min(_LONGEST_PAUSE_S, 2.0 ** (min(attempts, 16) - 1)) if attempts else 0.0


class Standing(Generic[_E]):
    """Keeps something up.

    Args:
        name: what it is, for the log and for error messages.
        make: makes one. It is called at once, and then, by the thread, whenever the last one has ended.
        pause_after: seconds before an attempt, by the number of those before it since it was last well.
        clock: seconds that only go forward.

    Raises:
        OSError, ConfigError: as `make` does, if the first one cannot be made. Later they only delay the next attempt,
            and so does a lack of threads (RuntimeError).
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], _E],
        *,
        pause_after: Callable[[int], float] = pause_after,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._make = make
        self._pause_after = pause_after
        self._clock = clock
        #: Notified when one was made, and when all is over.
        self._changed = threading.Condition()
        #: The one that is up; None: it was lost.
        self._current: _E | None = make()
        #: Since when one is or was up, by `clock`.
        self._up_at = clock()
        #: Set by `close`.
        self._over = threading.Event()
        #: The thread is in `make`, which may take as long as a machine that does not answer.
        self._is_making = False
        #: Why the last attempt has failed.
        self._problem = "it was lost just now"
        self._thread = threading.Thread(target=self._keep, args=(self._current,), name="hpcpool-standing", daemon=True)
        self._thread.start()

    @property
    def current(self) -> _E | None:
        """The one that is up; None: it was lost, and is not back yet."""
        return self._current

    @property
    def problem(self) -> str:
        """Why it is not back yet."""
        return self._problem

    def wait(self, timeout_s: float) -> _E | None:
        """Return the one that is up, which may be back within a while; else None."""
        with self._changed:
            self._changed.wait_for(lambda: self._current is not None or self._over.is_set(), timeout_s)
            return self._current

    def close(self) -> None:
        """End it, and make no other one; a second call does nothing. An attempt that is going on is not waited for."""
        with self._changed:
            self._over.set()
            current, self._current = self._current, None
            must_wait = not self._is_making
            self._changed.notify_all()
        if current is not None:
            current.close()
        if must_wait:
            self._thread.join()

    # -- the thread --

    def _keep(self, current: _E | None) -> None:
        attempts = 0
        while current is not None:
            current.wait_for_end()
            if not self._lose():
                return
            current.close()
            if self._clock() - self._up_at >= _WELL_S:
                attempts = 0
            current, attempts = self._make_anew(attempts)

    def _lose(self) -> bool:
        """Note that it has ended; False: as it should."""
        with self._changed:
            if self._over.is_set():
                return False
            self._current = None
            self._problem = "it was lost just now"
        logger.warning("%s was lost, and is made anew", self._name)
        return True

    def _make_anew(self, attempts: int) -> tuple[_E | None, int]:
        """Make one, however long that takes; None: it is not wanted any more. Also counts the attempts."""
        lost_at = self._clock()
        while not self._over.wait(self._pause_after(attempts)) and self._begin_to_make():
            attempts += 1
            try:
                made = self._make()
            except (OSError, ConfigError, RuntimeError) as error:  # the last: the system has no thread left just now
                self._note_failure(str(error))
                continue
            if self._put_up(made):
                logger.info("%s is back after %.1f s", self._name, self._clock() - lost_at)
                return made, attempts
            made.close()
        return None, attempts

    def _begin_to_make(self) -> bool:
        with self._changed:
            self._is_making = not self._over.is_set()
            return self._is_making

    def _note_failure(self, problem: str) -> None:
        with self._changed:
            self._is_making = False
            is_news, self._problem = problem != self._problem, problem
        logger.log(logging.INFO if is_news else logging.DEBUG, "%s is not back: %s", self._name, problem)

    def _put_up(self, made: _E) -> bool:
        with self._changed:
            self._is_making = False
            if self._over.is_set():
                return False
            self._current, self._up_at = made, self._clock()
            self._changed.notify_all()
            return True
