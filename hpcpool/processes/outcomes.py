"""How outcomes become results and exceptions: openers for `TaskFuture`, each called once, in the thread that asks."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from hpcpool.errors import (
    BrokenPool,
    DependencyError,
    NodeLost,
    ResourcesUnavailable,
    TaskKilled,
    TaskTimeout,
    WorkerCrashed,
    signal_name,
)
from hpcpool.processes.task_future import Opener, TaskFuture
from hpcpool.processes.ticket import Ticket
from hpcpool.wire.failures import (
    forget_frames,
    remote_traceback,
    set_cause,
    unpickle_failure,
    unpickle_payload_error,
)
from hpcpool.wire.messages import Broken, Crash, Outcome, Status
from hpcpool.wire.packing import Payload, localised
from hpcpool.wire.payload import pickle_value
from hpcpool.wire.segments import SegmentStore

#: A chain of failed dependencies is named up to this many calls.
_NAMED_CALLS = 5
_GAP = "…"


def failure(outcome: Outcome, payloads: list[Payload], future: TaskFuture[Any], timeout_s: float) -> Opener:
    """Open what a failed call left behind; `timeout_s` is the limit that it had."""
    if outcome.status == Status.BEREFT and (lost := next(filter(has_failed, future._awaits), None)) is not None:
        return by_dependency(future, lost)
    name = future._name
    text = outcome.data.decode(errors="replace") if outcome.status >= Status.LOST else ""

    def opener() -> tuple[Any, BaseException | None]:
        match outcome.status:
            case Status.FAILED:
                return None, unpickle_failure(payloads[0])
            case Status.PAYLOAD_ERROR:
                return None, unpickle_payload_error(payloads[0], f"the call of {name} cannot be unpickled")
            case Status.TIMED_OUT:
                return None, TaskTimeout(
                    f"{name} ran longer than its timeout of {timeout_s:g} s on {outcome.host} and was ended"
                )
            case Status.KILLED:
                return None, _killed_error(name)
            case Status.LOST:
                return None, NodeLost(f"{name}: {text}")
            case Status.BEREFT:
                return None, DependencyError(f"{name} was not run: a result that it depends on was {text}")
            case Status.UNAVAILABLE:
                return None, ResourcesUnavailable(f"{name} {text}")
            case _:
                return None, _crash_error(outcome, name)

    return opener


def killed(name: str) -> Opener:
    """Open as a call that was ended by `kill()`."""
    return lambda: (None, _killed_error(name))


def _killed_error(name: str) -> TaskKilled:
    return TaskKilled(f"{name} was ended by kill()")


def _crash_error(outcome: Outcome, name: str) -> WorkerCrashed:
    crash = outcome.crash or Crash(0, 0, False, "")
    if crash.signal:
        how = f"was killed by {signal_name(crash.signal)}"
        if crash.out_of_memory:
            how += ", as the system ran out of memory"
    else:
        how = f"ended with exit code {crash.exit_code}"
    text = f"the worker (pid {outcome.pid} on {outcome.host}) {how} while it ran {name}"
    if crash.stderr_tail.strip():
        text += f"; the last it wrote to stderr:\n{crash.stderr_tail.rstrip()}"
    return WorkerCrashed(
        text,
        exit_code=None if crash.signal else crash.exit_code,
        signal=crash.signal or None,
        host=outcome.host,
        pid=outcome.pid,
        out_of_memory=crash.out_of_memory,
        stderr_tail=crash.stderr_tail,
    )


def ask_retry_on(
    retry_on: tuple[type[BaseException], ...] | Callable[[BaseException], bool], opener: Opener
) -> tuple[Opener, bool]:
    """Return the opener of a failed call's error, or of what `retry_on` raised, and whether the call is run again."""
    error = opener()[1]
    try:
        if isinstance(retry_on, tuple):
            return opener, isinstance(error, retry_on)
        return opener, error is not None and bool(retry_on(error))
    except BaseException as own_error:  # noqa: BLE001 - the user's function
        set_cause(own_error, error)
        return raising(own_error), False
    finally:
        error = None  # its frames lead here: a cycle


def raising(error: BaseException) -> Opener:
    """Open as this error."""
    return lambda: (None, error)


def without_frames(error: BaseException) -> BaseException:
    """Return an error that a user's object raised here, with its traceback as text, as `ProcessPoolExecutor` has it.

    The frames themselves would keep the arguments alive, and the future that has the error.
    """
    text = "".join(traceback.format_exception(error))
    set_cause(forget_frames(error), remote_traceback(text))
    return error


def broken_error(broken: Broken) -> BrokenPool:
    """Return a new error for a broken pool: one for each future, so that tracebacks do not pile up in one."""
    error = BrokenPool(broken.reason)
    if broken.traceback:
        error.__cause__ = remote_traceback(broken.traceback)
    return error


def broken(reason: Broken) -> Opener:
    """Open as a broken pool's error."""
    return lambda: (None, broken_error(reason))


def cancelled_inside(future: TaskFuture[Any], cancelled: Future[Any]) -> DependencyError:
    """Return the error of a join whose running function returned a future that was cancelled."""
    error = DependencyError(f"{future._name} returned a future that was cancelled")
    error.__cause__ = CancelledError()
    return error


def by_dependency(future: TaskFuture[Any], cause: Future[Any]) -> Opener:
    """Open as the error of a call whose dependency failed; the first that did is the cause, however long the chain."""
    root: Future[Any] = cause
    above: tuple[str, ...] = ()
    if isinstance(cause, TaskFuture):
        origin = cause._origin or cause
        root = origin._root or origin if isinstance(origin, TaskFuture) else origin
        above = cause._chain or (cause._name,)
    future._root = root
    future._chain = _longer(above, future._name)

    def opener() -> tuple[Any, BaseException | None]:
        original = root.exception()
        text = f"{future._name} was not run: a call that it depends on failed"
        if len(future._chain) > 1:
            text += f" ({' -> '.join(future._chain)})"
        error = DependencyError(f"{text}: {type(original).__name__}: {original}")
        error.__cause__ = original
        return None, error

    return opener


def _longer(chain: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return a chain of names with one more at its end; of a long one only both ends are kept."""
    if _GAP in chain:
        return (*chain[:-1], name)
    return (*chain, name) if len(chain) < _NAMED_CALLS else (*chain[:2], _GAP, name)


def fill(ticket: Ticket, index: int, dependency: Future[Any], store: SegmentStore) -> bool:
    """Put a finished dependency's result in its place; if it cannot be pickled, fail the ticket and return False."""
    try:
        ticket.parts[index] = payload_of(dependency, store)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the result raises while it is pickled
        ticket.future._finish(raising(without_frames(error)))
        return False
    return True


def has_failed(future: Future[Any]) -> bool:
    """Say whether a finished future has no result; results of ours are not opened for this."""
    if isinstance(future, TaskFuture):
        return future._has_failed
    return future.cancelled() or future.exception() is not None


def payload_of(future: Future[Any], store: SegmentStore) -> Payload:
    """Return a finished future's result, as it came if that is still there; its segments are the store's."""
    payload = future._pass_on() if isinstance(future, TaskFuture) else None
    if payload is None:
        return pickle_value(future.result(), is_captured=True, store=store)
    return localised(payload, store)
