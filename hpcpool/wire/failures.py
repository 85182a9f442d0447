"""Exceptions between processes: they come back as they were, with the remote traceback as their cause.

What cannot be pickled and rebuilt the ordinary way (a class whose `__init__` takes other arguments, an attribute that
does not pickle) is rebuilt without calling `__init__`; what cannot be rebuilt at all becomes a `RemoteError`.
"""

from __future__ import annotations

import contextlib
import traceback
import types
from concurrent.futures.process import _RemoteTraceback
from types import TracebackType
from typing import Any

import tblib

from hpcpool.errors import PayloadError, RemoteError
from hpcpool.wire.failure_record import Failure
from hpcpool.wire.importable import MAINS
from hpcpool.wire.packing import Payload
from hpcpool.wire.payload import pickle_value, unpickle

#: Frames that travel, from each end of a traceback: `tblib` nests them, and deep nesting cannot be pickled.
_FRAMES = 50


def pickle_failure(error: BaseException, own_frames: int = 0) -> Payload:
    """Pickle an exception; `own_frames` innermost callers (ours) are left out of its traceback."""
    trace = error.__traceback__
    for _ in range(own_frames):
        trace = trace.tb_next if trace is not None else None
    error.with_traceback(trace)  # not by assignment: its class may forbid that (a frozen dataclass)
    failure = Failure(
        exception=_pickle_exception(error),
        type_name=_name(error),
        text=_text(error),
        traceback_text=_format(error),
        frames=_frames(trace),
    )
    return pickle_value(tuple(failure))


def unpickle_failure(payload: Payload) -> BaseException:
    """Rebuild the exception of a failed call, its remote traceback as `__cause__` and its frames where possible."""
    failure = Failure(*unpickle(payload))
    error = _rebuild(failure)
    try:
        if failure.frames is not None:
            error.with_traceback(tblib.Traceback.from_dict(failure.frames).as_traceback())
        set_cause(error, remote_traceback(failure.traceback_text))
        return error
    finally:
        del error  # the frames that were made here lead here: a cycle


def unpickle_payload_error(payload: Payload, what: str) -> PayloadError:
    """Rebuild the error of a call or outcome that could not be opened at the other end."""
    failure = Failure(*unpickle(payload))
    error = PayloadError(f"{what}: {failure.type_name}: {failure.text}")
    set_cause(error, remote_traceback(failure.traceback_text))
    return error


def remote_traceback(text: str) -> _RemoteTraceback:
    """Return the cause that shows a remote traceback, of exactly the class that ProcessPoolExecutor uses."""
    return _RemoteTraceback(f'\n"""\n{text}"""')  # type: ignore[arg-type]  # typeshed has it wrong: it is text


def _frames(trace: TracebackType | None) -> dict[str, Any] | None:
    """Return a traceback in `tblib`'s plain form, the middle of a very long one left out."""
    chain = []
    while trace is not None:
        chain.append(trace)
        trace = trace.tb_next
    if len(chain) > 2 * _FRAMES:
        chain = chain[:_FRAMES] + chain[-_FRAMES:]
    short = None
    for part in reversed(chain):
        short = TracebackType(short, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return tblib.Traceback(short).to_dict() if short is not None else None


def _rebuild(failure: Failure) -> BaseException:
    if failure.exception is not None:
        try:
            error = unpickle(Payload(failure.exception))
        except BaseException as problem:  # noqa: BLE001 - user code in the exception's class
            _let_pass(problem)
            hint = f" (it cannot be rebuilt here: {type(problem).__name__}: {problem})"
        else:
            if isinstance(error, BaseException):
                return error
            hint = " (its pickle did not give an exception)"
    else:
        hint = " (it cannot be pickled)"
    return RemoteError(
        f"{failure.type_name}: {failure.text}{hint}",
        type_name=failure.type_name,
        traceback_text=failure.traceback_text,
    )


def _pickle_exception(error: BaseException) -> bytes | None:
    """Pickle an exception in the first way that survives a round trip."""
    for form in (error, _WithoutInit(error), _WithoutInit(error, printable_only=True)):
        # An `__init__` that makes its message from its arguments makes another one when it is given the message.
        text = _text(error) if form is error else None
        if (data := _round_trip(form, type(error), text)) is not None:
            return data
    return None


def _round_trip(form: Any, kind: type, text: str | None) -> bytes | None:
    """Return the pickle, if what is rebuilt from it is of this class (and reads like this)."""
    try:
        payload = pickle_value(form)
        rebuilt = unpickle(Payload(payload.data, payload.buffers))
    except BaseException as problem:  # noqa: BLE001 - user code in __reduce__ or __init__
        _let_pass(problem)
        return None
    is_same = isinstance(rebuilt, BaseException) and type(rebuilt) is kind and (text is None or _text(rebuilt) == text)
    return payload.data if is_same and not payload.buffers else None


class _WithoutInit:
    """Pickles as "make this exception without calling its `__init__`"."""

    def __init__(self, error: BaseException, *, printable_only: bool = False) -> None:
        self._class = type(error)
        self._args = error.args
        self._state = {**_slots(error), **vars(error)}
        if printable_only:
            self._args = tuple(_carriable(value) for value in error.args)
            self._state = {name: _carriable(value) for name, value in self._state.items()}

    def __reduce__(self) -> Any:
        return (_make_without_init, (self._class, self._args, self._state))


def _make_without_init(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    BaseException.__setattr__(error, "args", args)
    for name, value in state.items():
        with contextlib.suppress(AttributeError, TypeError):  # some built-in ones can only be read
            BaseException.__setattr__(error, name, value)
    return error


def _slots(error: BaseException) -> dict[str, Any]:
    """Return what built-in exceptions keep outside of `__dict__` (errno and filename of OSError, …)."""
    names = [
        name
        for cls in type(error).__mro__
        for name, member in vars(cls).items()
        if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType) and not name.startswith("_")
    ]
    state = {name: getattr(error, name, None) for name in names if name not in ("args", "with_traceback")}
    return {name: value for name, value in state.items() if value is not None}


def _carriable(value: Any) -> Any:
    """Return a value as it is if it survives pickling, else its repr."""
    try:
        unpickle(Payload(pickle_value(value).data))
    except BaseException as problem:  # noqa: BLE001 - user code in __reduce__
        _let_pass(problem)
        return _safely(repr, value)
    return value


def _name(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__ == "builtins" or kind.__module__ in MAINS:
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    return _safely(str, error)


def _format(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException as problem:  # noqa: BLE001 - a broken __str__ or __repr__ of the user's
        _let_pass(problem)
        return f"{_name(error)} (its traceback cannot be formatted: {type(problem).__name__})\n"


def _safely(show: Any, value: Any) -> str:
    try:
        return str(show(value))
    except BaseException as problem:  # noqa: BLE001 - the same
        _let_pass(problem)
        return f"<{type(value).__qualname__} whose {show.__name__}() raised {type(problem).__name__}>"


def set_cause(error: BaseException, cause: BaseException | None) -> None:
    """Set the cause of an error, also of one whose class forbids assignments (a frozen dataclass)."""
    BaseException.__setattr__(error, "__cause__", cause)


def forget_frames(error: BaseException) -> BaseException:
    """Drop the tracebacks of an error and of all that led to it: their frames would keep the arguments alive."""
    known: set[int] = set()
    remaining: list[BaseException | None] = [error]
    while remaining:
        found = remaining.pop()
        if found is not None and id(found) not in known:
            known.add(id(found))
            BaseException.with_traceback(found, None)
            remaining += found.__cause__, found.__context__
            if isinstance(found, BaseExceptionGroup):
                remaining += found.exceptions
    return error


def _let_pass(problem: BaseException) -> None:
    """Ctrl-C means the program, not the exception that was being looked at."""
    if isinstance(problem, KeyboardInterrupt):
        raise problem
