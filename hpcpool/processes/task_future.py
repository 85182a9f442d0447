"""The future of one call: a `concurrent.futures.Future` whose value is unpickled by the thread that first asks for it.

So the client's I/O thread never runs a user's `__setstate__` or exception class, a result that nobody looks at is
never opened, and a result that other calls depend on travels on as it came.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, RUNNING
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from hpcpool.wire.payload import Payload

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
    #: 1 for the first run; each retry counts.
    attempt: int = 1
    #: Seconds since the epoch.
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    #: CPU seconds (user and system) of the worker during the call, without those of processes that it started.
    cpu_s: float | None = None
    #: The worker's largest resident memory up to the end of the call, in bytes.
    peak_memory_bytes: int | None = None


class Controller(Protocol):
    """What a future needs of the client that made it."""

    def cancel(self, task: int) -> None:
        """The user cancelled the future of this task."""

    def kill(self, task: int) -> None:
        """The user wants this running task ended."""


class TaskFuture(Future[T], Generic[T]):
    """A call's future: all of `concurrent.futures.Future`, and `kill()` and `info`."""

    def __init__(self, name: str = "", controller: Controller | None = None, task: int = 0) -> None:
        self._open: Callable[[], tuple[Any, BaseException | None]] | None = None
        self._value: Any = None
        self._error: BaseException | None = None
        #: The result as it came, while it can be passed on as it is.
        self._payload: Payload | None = None
        #: For a call that failed by its dependencies: the future that failed first, and the names from there to here.
        self._root: Future[Any] | None = None
        self._chain: tuple[str, ...] = ()
        self._controller = controller
        self._task = task
        self._info = TaskInfo(name)
        super().__init__()

    @property
    def info(self) -> TaskInfo:
        """What is known of the call by now (`TaskInfo`)."""
        return self._info

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

    def _finish(
        self,
        opener: Callable[[], tuple[Any, BaseException | None]],
        *,
        failed: bool,
        payload: Payload | None = None,
        info: TaskInfo | None = None,
    ) -> bool:
        """Complete the future with what `opener` will give; False if it was cancelled (or completed) before."""
        with self._condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED):
                return False
            self._open, self._payload = opener, payload
            if info is not None:
                self._info = info
            self._state = FINISHED
            for waiter in self._waiters:
                if failed:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._condition.notify_all()
        self._controller = None
        self._invoke_callbacks()  # type: ignore[attr-defined]
        return True

    def _start(self) -> None:
        """Note that the call runs, so that it can no longer be cancelled."""
        with self._condition:
            if self._state not in (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED):
                self._state = RUNNING

    def _acknowledge_cancel(self) -> None:
        """Tell those who wait that the cancellation is final."""
        if self._state == CANCELLED:
            self.set_running_or_notify_cancel()

    def _materialise(self) -> None:
        """Open the outcome, once; called with the future's lock held or after it has finished."""
        with self._condition:
            opener, self._open = self._open, None
            if opener is not None:
                self._value, self._error = opener()
                if self._payload is not None and len(self._payload.data) > _KEPT_BYTES:
                    self._payload = None

    # Future keeps its outcome in these two attributes; here they are opened when they are looked at.

    @property
    def _result(self) -> Any:
        self._materialise()
        return self._value

    @_result.setter
    def _result(self, value: Any) -> None:
        self._value = value

    @property
    def _exception(self) -> BaseException | None:
        self._materialise()
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
