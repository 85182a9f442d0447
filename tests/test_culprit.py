"""The note on an error of pickling: it leads from the call to the object, and it never hides the error."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

from hpcpool.culprit import note_culprit
from hpcpool.wire.payload import pickle_call

LOCK = threading.Lock()
LINES = (line for line in ())


def note_of(fn: Any, *args: Any, **kwargs: Any) -> str:
    """The note that an error gets, without its beginning; empty: none."""
    error = TypeError("cannot pickle '_thread.lock' object")
    note_culprit(error, fn, args, kwargs)
    (note,) = getattr(error, "__notes__", None) or [""]
    return str(note).removeprefix("hpcpool: what cannot be pickled is ")


def made(text: str, name: str = "f", **names: Any) -> Any:
    """A function of a program: of a `__main__` that others cannot import."""
    namespace = {"__name__": "__main__", **names}
    exec(text, namespace)
    return namespace[name]


class Holder:
    """Has a lock, and a method."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def method(self) -> None:
        """Do nothing."""


class Trap:
    """Cannot be pickled, and cannot be looked at either."""

    def __reduce__(self) -> Any:
        raise TypeError("no")

    def __getattribute__(self, name: str) -> Any:
        if name in ("__dict__", "__self__"):
            raise OSError("do not look at me")
        return super().__getattribute__(name)


class Slotted:
    """Cannot be pickled, and has no parts to be seen."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_a_global_of_the_function_is_named():
    fn = made("def f(): return lines", lines=LINES)
    assert note_of(fn) == "the function f, its global 'lines' (of type generator)"


def test_a_global_of_a_function_in_the_function_is_named():
    fn = made("def f():\n    return lambda: lines", lines=LINES)
    assert note_of(fn) == "the function f, its global 'lines' (of type generator)"


def test_a_global_of_a_function_that_the_function_calls_is_named():
    fn = made("def g(): return lines\ndef f(): return g()", lines=LINES)
    assert note_of(fn) == "the function f, its global 'g', its global 'lines' (of type generator)"


def test_a_global_that_a_worker_makes_anew_is_not_to_blame():
    fn = made("def f():\n    with lock: return lines", lock=LOCK, lines=LINES)
    assert note_of(fn) == "the function f, its global 'lines' (of type generator)"


def test_a_variable_of_a_closure_is_named():
    lock = threading.Lock()
    assert note_of(lambda: lock).endswith("<lambda>, its variable 'lock' (of type lock)")


def test_a_default_of_the_function_is_named():
    assert note_of(made("def f(n, lock=lock): pass", lock=LOCK)).endswith("f, its default 1 (of type lock)")


def test_the_way_into_an_argument_is_named():
    value = {"ok": 1, "cfg": [2, (3, LOCK)]}
    assert note_of(abs, 1, value) == "argument 2, its item 'cfg', its item 1, its item 1 (of type lock)"
    assert note_of(abs, key=[LOCK]) == "argument 'key', its item 0 (of type lock)"


def test_an_attribute_of_an_argument_is_named():
    assert note_of(abs, Holder()) == "argument 1, its attribute 'lock' (of type lock)"


def test_the_object_of_a_bound_method_is_named():
    assert note_of(Holder().method) == ("the function Holder.method, its object, its attribute 'lock' (of type lock)")


def test_an_argument_of_a_partial_is_named():
    assert note_of(functools.partial(pow, LOCK)) == "the function pow, its argument 1 (of type lock)"
    assert note_of(functools.partial(pow, exp=LOCK)) == "the function pow, its argument 'exp' (of type lock)"


def test_where_the_parts_can_travel_or_are_not_to_be_seen_the_whole_is_named():
    assert note_of(abs, Slotted()) == "argument 1 (of type Slotted)"


def test_a_call_that_can_be_pickled_gets_no_note():
    assert note_of(abs, -1) == ""


def test_what_the_objects_raise_when_they_are_looked_at_does_not_hide_the_error():
    with pytest.raises(OSError, match="do not look"):
        hasattr(Trap(), "__self__")
    with pytest.raises(TypeError, match="^no$"):
        pickle_call(abs, (Trap(),), {})
    assert note_of(abs, Trap()) == ""


def test_an_object_that_contains_itself_has_an_end():
    endless: list[Any] = [LOCK]
    endless.insert(0, endless)
    assert note_of(abs, endless).startswith("argument 1, its item 0, its item 0")
