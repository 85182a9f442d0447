"""The future of one call: a `concurrent.futures.Future` whose value is unpickled by the thread that first asks for it.

So the client's I/O thread never runs a user's `__setstate__` or exception class, a result that nobody looks at is
never opened, and a result that other calls depend on travels on as it came.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, RUNNING
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from hpcpool.wire.failures import pickle_failure, unpickle_payload_error
from hpcpool.wire.messages import Outcome
from hpcpool.wire.payload import Payload, unpickle

T = TypeVar("T")

#: A pickle up to this size is kept after the value was taken, so that it can be passed on to later calls unchanged.
_KEPT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What is known of a call: where and when it ran, and what it used. Fields are None until they are known."""

    #: The name given with `options(name=…)`, else the function's qualified name.
    name: str
    host: str | None = None
    #: Process id of the worker.
    pid: int | None = None
    #: 1 for the first run; each retry counts, and each run after a crash or a lost node.
    attempt: int = 1
    #: Seconds since the epoch.
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    #: CPU seconds (user and system) of the worker during the call, without those of processes that it started.
    cpu_s: float | None = None
    #: The worker's largest resident memory up to the end of the call, in bytes.
    peak_memory_bytes: int | None = None


Opener = Callable[[], tuple[Any, BaseException | None]]


def open_result(payload: Payload) -> tuple[Any, BaseException | None]:
    """Open a call's result; if it cannot be unpickled, that is the outcome."""
    try:
        return unpickle(payload), None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - user code in __setstate__ may raise anything
        return None, unpickle_payload_error(pickle_failure(error), "the result cannot be unpickled")


class Controller(Protocol):
    """What a future needs of the client that made it."""

    def cancel(self, task: int) -> None:
        """The user cancelled the future of this task."""

    def kill(self, task: int) -> None:
        """The user wants this running task ended."""


class TaskFuture(Future[T], Generic[T]):
    """A call's future: all of `concurrent.futures.Future`, and `kill()` and `info`."""

    def __init__(self, name: str = "", controller: Controller | None = None, task: int = 0) -> None:
        #: Makes value and error when somebody first asks; None: they are there, or `_payload` is the value's.
        self._opener: Opener | None = None
        self._is_sealed = False
        self._value: Any = None
        self._error: BaseException | None = None
        #: The result as it came, while it can be passed on as it is.
        self._payload: Payload | None = None
        #: For a call that failed by its dependencies: the future that failed first, and the names from there to here.
        self._root: Future[Any] | None = None
        self._chain: tuple[str, ...] = ()
        self._controller = controller
        self._task = task
        self._name = name
        self._attempt = 1
        self._queued_at = time.time()
        #: The last outcome, without its payload.
        self._outcome: Outcome | None = None
        super().__init__()

    @property
    def info(self) -> TaskInfo:
        """What is known of the call by now (`TaskInfo`)."""
        outcome = self._outcome
        if outcome is None:
            return TaskInfo(self._name, attempt=self._attempt, queued_at=self._queued_at)
        has_run = outcome.started_at > 0
        return TaskInfo(
            self._name,
            host=outcome.host or None,
            pid=outcome.pid or None,
            attempt=self._attempt + outcome.reruns,
            queued_at=self._queued_at,
            started_at=outcome.started_at if has_run else None,
            ended_at=outcome.started_at + outcome.elapsed_s if has_run else None,
            cpu_s=outcome.cpu_s if has_run else None,
            peak_memory_bytes=outcome.peak_memory_bytes or None,
        )

    def cancel(self) -> bool:
        """Cancel the call if it is not known to run; True if it is cancelled now or was before. Never blocks."""
        if not super().cancel():
            return False
        if self._controller is not None and self._state == CANCELLED:
            self._controller.cancel(self._task)
        return True

    def kill(self) -> bool:
        """End the call even if it runs: its worker is killed and replaced, and `result()` raises `TaskKilled`.

        Returns:
            False if the call had already finished. A call that does not run yet is cancelled.

        Example:
            >>> import time, hpcpool
            >>> with hpcpool.HPCPoolExecutor(1) as pool:
            ...     future = pool.submit(time.sleep, 60)
            ...     while not future.running():
            ...         time.sleep(0.01)
            ...     future.kill()
            True
        """
        if self.cancel():
            return True
        if self.done() or self._controller is None:
            return False
        self._controller.kill(self._task)
        return True

    # -- for the client --

    def _succeed(self, payload: Payload, outcome: Outcome) -> bool:
        """Complete the future with a result as it came; False if it was cancelled (or completed) before."""
        return self._complete(None, payload, outcome)

    def _finish(self, opener: Opener, outcome: Outcome | None = None) -> bool:
        """Fail the future with what `opener` will give; False if it was cancelled (or completed) before."""
        return self._complete(opener, None, outcome)

    def _complete(self, opener: Opener | None, payload: Payload | None, outcome: Outcome | None) -> bool:
        with self._condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED):
                return False
            self._opener, self._payload, self._is_sealed = opener, payload, True
            if outcome is not None:
                self._outcome = outcome
            self._state = FINISHED
            for waiter in self._waiters:
                if opener is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._condition.notify_all()
        self._controller = None
        self._invoke_callbacks()
        return True

    def _invoke_callbacks(self) -> None:
        """Call each callback once, in order; what one raises concerns neither the others nor the client's thread."""
        for callback in self._done_callbacks:  # type: ignore[attr-defined]
            try:
                callback(self)
            except BaseException as error:
                # In the main thread (cancel() calls back there) Ctrl-C and exit mean the program, not the callback.
                if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                    raise
                LOGGER.exception("exception calling callback for %r", self)

    def _start(self) -> None:
        """Note that the call runs, so that it can no longer be cancelled."""
        with self._condition:
            if self._state not in (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED):
                self._state = RUNNING

    def _acknowledge_cancel(self) -> None:
        """Tell those who wait that the cancellation is final."""
        if self._state == CANCELLED:
            self.set_running_or_notify_cancel()

    def _unseal(self) -> None:
        """Open the outcome, once."""
        with self._condition:
            if not self._is_sealed:
                return
            self._is_sealed = False
            opener, payload = self._opener, self._payload
            self._opener = None
            if opener is not None:
                self._value, self._error = opener()
            elif payload is not None:
                self._value, self._error = open_result(payload)
                if len(payload.data) > _KEPT_BYTES:
                    self._payload = None

    # Future keeps its outcome in these two attributes; here they are opened when they are looked at.

    @property
    def _result(self) -> Any:
        if self._is_sealed:
            self._unseal()
        return self._value

    @_result.setter
    def _result(self, value: Any) -> None:
        self._value = value

    @property
    def _exception(self) -> BaseException | None:
        if self._is_sealed:
            self._unseal()
        return self._error

    @_exception.setter
    def _exception(self, error: BaseException | None) -> None:
        self._error = error

    def _Future__get_result(self) -> T:  # noqa: N802 - overrides the name-mangled method that result() calls
        error = self._exception
        if error is not None:
            try:
                raise error
            finally:
                self = None  # type: ignore[assignment]  # noqa: PLW0642 - breaks the cycle through the traceback
        return self._result  # type: ignore[no-any-return]

    def __reduce__(self) -> Any:
        raise TypeError(
            "a future can only be sent to a worker as an argument of submit() or map() (where it stands for its "
            "result), not be pickled"
        )
