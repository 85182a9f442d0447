"""Says which part of a call cannot be pickled. Asked only after pickling has failed, and it changes nothing."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

from hpcpool.naming import name_of
from hpcpool.wire.anew import recipe_of
from hpcpool.wire.payload import pickle_call

#: Far deeper than anybody reads.
_DEEPEST = 20


def note_culprit(error: BaseException, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Add to the error the way from the call to the object that cannot be pickled."""
    try:
        if note := _way_to_culprit(fn, args, kwargs):
            error.add_note(f"hpcpool: what cannot be pickled is {note}")
    except Exception:  # noqa: BLE001 - what the user's objects raise while they are looked at must not hide the error
        return


def _way_to_culprit(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    steps: list[str] = []
    parts: Iterator[tuple[str, Any]] = itertools.chain(
        [(f"the function {name_of(fn)}", fn)],
        ((f"argument {index}", value) for index, value in enumerate(args, 1)),
        ((f"argument {name!r}", value) for name, value in kwargs.items()),
    )
    culprit: Any = None
    while len(steps) < _DEEPEST and (found := next((part for part in parts if not _can_travel(part[1])), None)):
        step, culprit = found
        steps.append(step)
        parts = _parts(culprit)
    return f"{', '.join(steps)} (of type {type(culprit).__qualname__})" if steps else ""


def _can_travel(value: Any) -> bool:
    try:
        pickle_call(id, (value,), {})
    except Exception:  # noqa: BLE001 - whatever the user's objects raise: that is the question
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # it has no value yet
                yield f"its variable {name!r}", cell.cell_contents
        for name in _names(value.__code__):
            if name in value.__globals__ and recipe_of(value.__globals__[name]) is None:
                yield f"its global {name!r}", value.__globals__[name]
        yield from ((f"its default {index}", default) for index, default in enumerate(value.__defaults__ or (), 1))
    elif isinstance(value, functools.partial):
        yield "its function", value.func
        yield from ((f"its argument {index}", item) for index, item in enumerate(value.args, 1))
        yield from ((f"its argument {name!r}", item) for name, item in value.keywords.items())
    elif isinstance(value, dict):
        yield from ((f"its item {key!r}", item) for key, item in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"its item {index}", item) for index, item in enumerate(value))
    elif hasattr(value, "__self__"):
        yield "its object", value.__self__
    else:
        yield from ((f"its attribute {name!r}", item) for name, item in getattr(value, "__dict__", {}).items())


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
