"""Functions that travel by value: pickled once, addressed by content hash, sent once to each node.

The client keeps a `FunctionCache`; a worker opens a function with `load_function`. By identity only what cannot have
changed is reused (`Fingerprint`); anything that names a mutable global, default or closure is pickled again at each
submit and recognised by its hash, so a changed function is always sent anew.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import sys
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from cloudpickle import cloudpickle as _private

from hpcpool.wire import by_value, payload

_ATOMS = (int, float, str, bytes, bool, complex, type(None), type(Ellipsis))
_MISSING = object()
#: Functions opened in this process, most recently used last.
_loaded: OrderedDict[bytes, _Loaded] = OrderedDict()
#: How many functions a worker keeps open: more than a program has, few enough to bound what closures hold.
LOADED_LIMIT = 512


class _Loaded(NamedTuple):
    """An opened function and the globals of `__main__` that came with it."""

    function: Callable[..., Any]
    brought: by_value.Brought


class Blob(NamedTuple):
    """A function by value: its content hash and its pickle."""

    key: bytes
    data: bytes


# -- in a worker ------------------------------------------------------------------------------------------------------


def _no_blobs(key: bytes) -> bytes:
    raise LookupError(f"this process has no source of functions (wanted {key.hex()})")


#: Returns the pickle of a function by its key; a worker puts its node's store here.
blob_source: Callable[[bytes], bytes] = _no_blobs


def load_function(key: bytes) -> Callable[..., Any]:
    """Return the function of this key, opened once in each process; called by pickle while a call is opened."""
    known = _loaded.get(key)
    if known is None:
        function, brought = by_value.loading(lambda: pickle.loads(blob_source(key)))
        _loaded[key] = _Loaded(function, brought)
        if len(_loaded) > LOADED_LIMIT:
            _loaded.popitem(last=False)
        return function  # type: ignore[no-any-return]
    if next(reversed(_loaded)) != key:  # another function was used last: it may have brought other globals
        _loaded.move_to_end(key)
        by_value.put_in_place(known.brought)
    return known.function


# -- at the client ----------------------------------------------------------------------------------------------------


class Fingerprint:
    """All that a function's pickle was made from, if none of it can change unseen; else `stable` is False.

    It keeps no function alive, neither the one it is of nor those that this names: functions are held weakly.
    """

    __slots__ = ("_functions", "stable")

    def __init__(self, function: types.FunctionType) -> None:
        self.stable = True
        self._functions: list[tuple[weakref.ref[types.FunctionType], tuple[Any, ...]]] = []
        self._visit(function)

    def still_holds(self) -> bool:
        """Say whether everything is still the very same object."""
        for reference, parts in self._functions:
            function = reference()
            if function is None or not _are_same(parts, _parts(function)):
                return False
        return True

    def _visit(self, function: types.FunctionType) -> None:
        if any(reference() is function for reference, _ in self._functions):
            return
        parts = _parts(function)
        self._functions.append((weakref.ref(function), tuple(map(_held, parts))))
        if function.__dict__ or function.__kwdefaults__:
            self.stable = False
        for value in parts[_FIXED_PARTS:]:
            self._visit_value(value)

    def _visit_value(self, value: Any) -> None:
        if not self.stable or value is _MISSING or type(value) in _ATOMS:
            return
        if type(value) in (tuple, frozenset):
            for item in value:
                self._visit_value(item)
        elif isinstance(value, types.ModuleType):
            self.stable = sys.modules.get(value.__name__) is value  # any other goes by value
        elif isinstance(value, types.FunctionType):
            if not by_value.is_importable(value):
                self._visit(value)
        elif isinstance(value, types.BuiltinFunctionType):
            # A method of a built-in object is of this type, too, and its object may change.
            self.stable = value.__self__ is None or isinstance(value.__self__, types.ModuleType)
        else:
            self.stable = isinstance(value, type) and by_value.is_importable(value)


#: How many of the parts of a function come before its defaults, cells and globals.
_FIXED_PARTS = 4


def _parts(function: types.FunctionType) -> tuple[Any, ...]:
    """Return all objects that a function's pickle is made from, in a fixed order."""
    names = function.__globals__
    return (
        function.__code__,
        len(function.__defaults__ or ()),
        bool(function.__kwdefaults__),
        bool(function.__dict__),
        *(function.__defaults__ or ()),
        *_cell_values(function),
        *[names.get(name, _MISSING) for name in _private._extract_code_globals(function.__code__)],
    )


def _held(part: Any) -> Any:
    return weakref.ref(part) if isinstance(part, types.FunctionType) else part


def _are_same(held: tuple[Any, ...], parts: tuple[Any, ...]) -> bool:
    if len(held) != len(parts):
        return False
    return all(old is new or (type(old) is weakref.ref and old() is new) for old, new in zip(held, parts, strict=True))


def _cell_values(function: types.FunctionType) -> list[Any]:
    values = []
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # the cell is still empty
            values.append(_MISSING)
    return values


class _Entry(NamedTuple):
    function: weakref.ref[types.FunctionType]
    fingerprint: Fingerprint | None
    blob: Blob


class FunctionCache:
    """Blobs of the functions that one client submits. Safe to use from many threads."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._lock = threading.Lock()

    def blob_of(self, function: types.FunctionType) -> Blob:
        """Return the blob of a function that must go by value; whatever pickling raises comes out."""
        entry = self._entries.get(id(function))
        if entry is not None and entry.function() is function:
            if entry.fingerprint is not None and entry.fingerprint.still_holds():
                return entry.blob
            previous: Blob | None = entry.blob
        else:
            previous = None
        fingerprint = Fingerprint(
            function
        )  # before the pickle: what another thread changes meanwhile is seen next time
        data = payload.dumps_by_value(function)
        key = hashlib.blake2b(data, digest_size=16).digest()
        blob = previous if previous is not None and previous.key == key else Blob(key, data)
        with self._lock:
            self._entries[id(function)] = _Entry(
                weakref.ref(function, functools.partial(_drop, self._entries, id(function))),
                fingerprint if fingerprint.stable else None,
                blob,
            )
        return blob


def _drop(entries: dict[int, _Entry], key: int, reference: object) -> None:
    entry = entries.get(key)
    if entry is not None and entry.function is reference:
        entries.pop(key, None)


def function_within(fn: Callable[..., Any]) -> types.FunctionType | None:
    """Return the plain function that a call is about, under any partials, if it must go by value."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if type(fn) is types.FunctionType and not by_value.is_importable(fn):
        return fn
    return None
