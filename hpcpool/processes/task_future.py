"""The future of one call: a `concurrent.futures.Future` whose value is unpickled by the thread that first asks for it.

So the client's I/O thread never runs a user's `__setstate__` or exception class, a result that nobody looks at is
never opened, and a result that other calls depend on travels on as it came. Only scalars are opened as they come: they
run nothing, and to open one costs less than to remember that it is to be opened.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING, RUNNING
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from hpcpool.errors import ResultLost
from hpcpool.wire.failures import pickle_failure, unpickle_payload_error
from hpcpool.wire.messages import Outcome, Run, Status
from hpcpool.wire.packing import Payload, pieces_away
from hpcpool.wire.payload import is_scalar, unpickle
from hpcpool.wire.segments import Segment

T = TypeVar("T")

#: A pickle up to this size is kept after the value was taken, so that it can be passed on to later calls unchanged.
_SMALL_BYTES = 64 * 1024

_CANCELLED = (CANCELLED, CANCELLED_AND_NOTIFIED)
_DONE = (*_CANCELLED, FINISHED)


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What is known of a call: where and when it ran, and what it used. Fields are None until they are known.

    Of a running call host, pid and start are known after some 20 ms; of one that was ended from outside (timeout,
    `kill()`, a dead worker) nobody has measured what it used.
    """

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


def open_result(payload: Payload, name: str, *, is_last: bool) -> tuple[Any, BaseException | None]:
    """Open a call's result (for the last time?); if it cannot be unpickled, that is the outcome."""
    try:
        return unpickle(payload, is_last=is_last), None
    except ResultLost:
        loss = next((piece.loss for piece in pieces_away(payload) if piece.loss), "lost")
        return None, ResultLost(f"the result of {name} was {loss}")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - user code in __setstate__ may raise anything
        return None, unpickle_payload_error(pickle_failure(error), f"the result of {name} cannot be unpickled")


def _costs_little(payload: Payload) -> bool:
    """Say whether a payload takes little memory besides the value that was made of it."""
    if type(payload.data) is Segment or len(payload.data) > _SMALL_BYTES:
        return False
    return all(type(buffer) is Segment and buffer.is_view for buffer in payload.buffers)


def _own(payload: Payload) -> Payload:
    """Return a payload whose buffers nobody else has; a segment gives memory of one's own anyway."""
    return Payload(payload.data, [b if type(b) is Segment else bytearray(b) for b in payload.buffers])


class Controller(Protocol):
    """What a future needs of the client that made it."""

    def cancel(self, task: int) -> None:
        """The user cancelled the future of this task."""

    def kill(self, task: int) -> None:
        """The user wants this running task ended."""


#: Guards every future that nobody waits for: a lock and a condition for each would be most of a pending call's memory
#: and time. Held for a few assignments only. In a list, for forked children to renew it. An RLock: the collector may
#: run a finaliser that cancels futures while a thread holds it.
_quick = [threading.RLock()]
os.register_at_fork(after_in_child=lambda: _quick.__setitem__(0, threading.RLock()))


class TaskFuture(Future[T], Generic[T]):
    """A call's future: all of `concurrent.futures.Future`, and `kill()` and `info`."""

    # What most futures never need is a class attribute until then. `_condition`, `_waiters` and `_done_callbacks`, at
    # which the standard library looks, are made when it does.
    _state = PENDING
    _lazy_condition: threading.Condition | None = None
    #: A lock that the only thread that waits cannot acquire before the end, or before there is a condition to wait on.
    #: A condition takes longer to make, and to wait on.
    _bell: threading.Lock | None = None
    _lazy_waiters: list[Any] | None = None
    _lazy_callbacks: list[Callable[[Future[Any]], object]] | None = None
    #: Makes value and error when somebody first asks; None: they are there, or `_payload` is the value's.
    _opener: Opener | None = None
    _is_sealed = False
    #: The thread that is opening the outcome.
    _opening: int | None = None
    _value: Any = None
    _error: BaseException | None = None
    #: The result as it came, while it can be passed on as it is.
    _payload: Payload | None = None
    #: It was made to be passed on (`put`, `options(keep=True)`), so `_payload` stays when it has been opened.
    _payload_stays = False
    #: Calls that depend on this one have been given `_payload`, so the value must not share memory with it.
    _is_passed_on = False
    #: For a call that failed by its dependencies: the future that failed first, and the names from there to here.
    _root: Future[Any] | None = None
    _chain: tuple[str, ...] = ()
    #: For a join that failed because of what its function returned: the future that failed so.
    _origin: Future[Any] | None = None
    #: What has to finish before it can, while it has not.
    _awaits: Sequence[Future[Any]] = ()
    _attempt = 1
    #: Where it runs, since it is known to run.
    _host = ""
    _run: Run | None = None
    #: The last outcome, without its payload.
    _outcome: Outcome | None = None

    def __init__(self, name: str = "", controller: Controller | None = None, task: int = 0) -> None:
        # Not Future.__init__: see above.
        self._controller = controller
        self._task = task
        self._name = name
        self._queued_at = time.time()

    @property
    def info(self) -> TaskInfo:
        """What is known of the call by now (`TaskInfo`)."""
        outcome, run = self._outcome, self._run
        if run is not None and not self.done():
            return TaskInfo(self._name, self._host, run.pid, self._attempt, self._queued_at, run.started_at)
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
            cpu_s=outcome.cpu_s if has_run and outcome.status <= Status.PAYLOAD_ERROR else None,
            peak_memory_bytes=outcome.peak_memory_bytes or None,
        )

    def cancel(self) -> bool:
        """Cancel the call if it is not known to run; True if it is cancelled now or was before. Never blocks.

        One that begins before its node has heard of this runs until then, and for some 20 ms in any case; its result is
        dropped.
        """
        if self._state == FINISHED or not super().cancel():
            return False
        controller = self._controller  # the client takes it away when the call is over
        if controller is not None and self._state == CANCELLED:
            controller.cancel(self._task)
        return True

    def kill(self) -> bool:
        """End the call even if it runs: its worker is killed and replaced, and `result()` raises `TaskKilled`.

        Returns:
            False if the call had already finished. A call that does not run yet is cancelled. A call that is killed
            is not tried again; one that finishes in the same moment keeps its outcome.

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
        controller = self._controller
        if self.done() or controller is None:
            return False
        controller.kill(self._task)
        return True

    def cancelled(self) -> bool:
        """Return True if the call was cancelled."""
        return self._state in _CANCELLED

    def running(self) -> bool:
        """Return True if the call is known to run: it has for some 20 ms."""
        return self._state == RUNNING

    def done(self) -> bool:
        """Return True if the call was cancelled or has finished."""
        return self._state in _DONE

    def result(self, timeout: float | None = None) -> T:
        """Return the call's result, waiting for it if need be.

        Args:
            timeout: seconds to wait; None: as long as it takes.

        Raises:
            TimeoutError: it has not finished in that time.
            CancelledError: it was cancelled.
            BaseException: whatever the call raised, or what became of it (`hpcpool.errors`).
        """
        try:
            self._wait(timeout)
            if self._is_sealed:
                self._unseal()
            if self._error is not None:
                raise self._error
            return self._value  # type: ignore[no-any-return]
        finally:
            self = None  # type: ignore[assignment]  # noqa: PLW0642 - breaks the cycle through the traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, or None, waiting for it if need be; arguments and errors as `result`.

        After None `result()` raises nothing: a result that is kept at its node is fetched for this, and any is opened.
        """
        # asyncio relies on that: it asks for the exception first, and if the result then raised, an `await` would
        # never end.
        try:
            self._wait(timeout)
            if self._is_sealed:
                self._unseal()
            return self._error
        finally:
            self = None  # type: ignore[assignment]  # noqa: PLW0642 - the frames of the error lead here

    def _wait(self, timeout_s: float | None) -> None:
        if self._state == FINISHED and not self._payload_stays:
            return
        until = None if timeout_s is None else time.monotonic() + timeout_s
        if timeout_s is None:
            self._wait_for_bell()
        if self._state != FINISHED:
            with self._condition:
                self._condition.wait_for(self.done, timeout_s)
        if self._state in _CANCELLED:
            raise CancelledError
        if self._state != FINISHED:
            raise TimeoutError
        self._bring(until)

    def _wait_for_bell(self) -> None:
        """Wait until it is over or there is a condition, as when others wait for it, too."""
        if self._state in _DONE or self._lazy_condition is not None:
            return
        bell = threading.Lock()
        bell.acquire()
        with _quick[0]:
            if self._state in _DONE or self._bell is not None or self._lazy_condition is not None:
                return
            self._bell = bell
        bell.acquire()  # Ctrl-C here leaves a bell that nobody hears: no harm
        self._bell = None

    def _ring(self) -> None:
        """Wake the thread that waits for the bell. May be done twice: Ctrl-C may strike before it is done."""
        if (bell := self._bell) is not None:
            try:
                bell.release()
            except RuntimeError:
                return  # it has been rung

    def _bring(self, until: float | None) -> None:
        """Have a result that was kept where it was made brought here; `TimeoutError` if that takes longer."""
        if self._payload_stays and (payload := self._payload) is not None:
            for piece in pieces_away(payload):
                piece.bring(until)

    # -- for the client --

    def _stand_for(self, payload: Payload) -> None:
        """Finish as what a user has put."""
        self._keep_payload()
        self._complete(None, payload, None)

    def _keep_payload(self) -> None:
        """Have the result stay as it comes, for calls that depend on it."""
        self._payload_stays = self._is_passed_on = True

    def _finish(self, opener: Opener, outcome: Outcome | None = None) -> bool:
        """Fail the future with what `opener` will give; False if it was cancelled (or completed) before."""
        return self._complete(opener, None, outcome)

    def _complete(self, opener: Opener | None, payload: Payload | None, outcome: Outcome | None) -> bool:
        """Finish, by an opener or with a result as it came; False if it was cancelled (or finished) before."""
        if not self._finish_quietly(opener, payload, outcome):
            # Cancelled a moment ago: the client has no ticket any more when it hears of that, so it is said here.
            self._acknowledge_cancel()
            return False
        self._controller = None
        if self._awaits:
            self._awaits = ()
        if self._lazy_callbacks:
            self._invoke_callbacks()
        return True

    def _finish_quietly(self, opener: Opener | None, payload: Payload | None, outcome: Outcome | None) -> bool:
        """Finish and wake those who wait, without callbacks; False if it was cancelled (or finished) before."""
        with _quick[0]:
            condition = self._lazy_condition
            if condition is None:
                is_first = self._set_finished(opener, payload, outcome)
                self._ring()
                return is_first
        with condition:  # somebody may wait
            if not self._set_finished(opener, payload, outcome):
                return False
            for waiter in self._lazy_waiters or ():
                if opener is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            condition.notify_all()
        self._ring()
        return True

    def _set_finished(self, opener: Opener | None, payload: Payload | None, outcome: Outcome | None) -> bool:
        if self._state in _DONE:
            return False
        self._payload, self._opener = payload, opener
        if payload is not None and type(payload.data) is bytes and is_scalar(payload.data):
            self._value = unpickle(payload)
        else:
            self._is_sealed = True
        if outcome is not None:
            self._outcome = outcome
        self._state = FINISHED
        return True

    def _invoke_callbacks(self) -> None:
        """Call each callback once, in order; what one raises concerns neither the others nor the client's thread."""
        for callback in self._lazy_callbacks or ():
            try:
                callback(self)
            except BaseException as error:
                # In the main thread (cancel() calls back there) Ctrl-C and exit mean the program, not the callback.
                if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                    raise
                LOGGER.exception("exception calling callback for %r", self)

    def _pass_on(self) -> Payload | None:
        """Return the result as it came, for another call's argument; None if only the value is left."""
        with _quick[0]:
            self._is_passed_on = True
            return self._payload

    @property
    def _has_failed(self) -> bool:
        """Whether it finished without a result, as far as can be said without opening the result."""
        with _quick[0]:
            if self._payload_stays and self._payload is not None and any(p.loss for p in pieces_away(self._payload)):
                return True
            return self._state in _CANCELLED or (self._opener if self._is_sealed else self._error) is not None

    def _start(self) -> bool:
        """Note that the call runs, so that it can no longer be cancelled; False if it is over."""
        with self._condition:
            if self._state == PENDING:
                self._state = RUNNING
            return self._state == RUNNING

    def _start_on(self, host: str, run: Run) -> None:
        """Note where the call runs."""
        self._host, self._run = host, run
        self._start()

    def _try_again(self) -> None:
        """Note that the call waits for another attempt, so that it can be cancelled again."""
        self._attempt += 1
        self._run = None
        with self._condition:
            if self._state == RUNNING:
                self._state = PENDING

    def _withdraw(self) -> None:
        """Cancel the call, even one that has run and waits for another attempt, and tell those who wait."""
        self._controller = None
        self._awaits = ()
        with self._condition:
            if self._state == RUNNING:
                self._state = PENDING
        super().cancel()
        self._acknowledge_cancel()

    def _acknowledge_cancel(self) -> None:
        """Tell those who wait that the cancellation is final."""
        if self._state == CANCELLED:
            with self._condition:
                if self._state == CANCELLED:  # two threads may say so
                    self.set_running_or_notify_cancel()

    def _unseal(self) -> None:
        """Open the outcome, once: in the first thread that asks, while others wait for it."""
        if self._payload_stays:  # before others can wait for this thread: it may be they who have to hear of it
            self._bring(None)
        me = threading.get_ident()
        with _quick[0]:
            if not self._is_sealed or self._opening == me:  # opened, or asked for by the very code that it runs
                return
            is_mine = self._opening is None
            if is_mine:
                self._opening = me
        if not is_mine:
            with self._condition:
                self._condition.wait_for(lambda: not self._is_sealed or self._opening is None)
            self._unseal()
            return
        try:
            self._open()
            with _quick[0]:
                self._is_sealed, self._opener = False, None
        finally:  # after Ctrl-C the next who asks tries again
            self._opening = None
            if self._lazy_condition is not None:
                with self._lazy_condition:
                    self._lazy_condition.notify_all()
            self = None  # type: ignore[assignment]  # noqa: PLW0642 - the frames of the error lead here

    def _open(self) -> None:
        try:
            if self._opener is not None:
                self._value, self._error = self._opener()
            else:
                self._open_payload()
        finally:
            self = None  # type: ignore[assignment]  # noqa: PLW0642 - the frames of the error lead here

    def _open_payload(self) -> None:
        with _quick[0]:
            payload = self._payload
            if payload is None:
                return
            is_shared = self._is_passed_on
            if not (stays := self._payload_stays or _costs_little(payload)):
                self._payload = None
        try:
            # The user may change a value that shares memory with its buffers; other calls are to get it as it came.
            own = _own(payload) if is_shared else payload
            self._value, self._error = open_result(own, self._name, is_last=not (is_shared or stays))
        except BaseException:
            self._payload = payload
            raise

    # What the standard library looks at from outside (wait, as_completed, add_done_callback, asyncio).
    # To a type checker they are the attributes that they override, or `as_completed` would refuse a TaskFuture.
    if not TYPE_CHECKING:

        @property
        def _condition(self) -> threading.Condition:
            if self._lazy_condition is None:
                condition = threading.Condition()
                with _quick[0]:
                    if self._lazy_condition is None:
                        self._lazy_condition = condition
            self._ring()
            return self._lazy_condition

        @property
        def _waiters(self) -> list[Any]:
            if self._lazy_waiters is None:
                self._lazy_waiters = []
            return self._lazy_waiters

        @property
        def _done_callbacks(self) -> list[Callable[[Future[Any]], object]]:
            if self._lazy_callbacks is None:
                self._lazy_callbacks = []
            return self._lazy_callbacks

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

    def __repr__(self) -> str:
        """Name and state; the outcome is not opened for this."""
        state = self._state.replace("_AND_NOTIFIED", "").lower()
        if self._state == FINISHED and not self._is_sealed:
            state += (
                f" raised {type(self._error).__name__}"
                if self._error is not None
                else f" returned {type(self._value).__name__}"
            )
        return f"<TaskFuture at {id(self):#x} of {self._name} state={state}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a future can only be sent to a worker as an argument of submit() or map() (where it stands for its "
            "result), not be pickled"
        )
