"""Functions that travel by value: pickled once, addressed by content hash, sent once to each node.

The client keeps a `FunctionCache`; a worker opens a function with `load_function`. By identity only what cannot have
changed is reused (`Fingerprint`); anything that names a mutable global, default or closure is pickled again at each
submit and recognised by its hash, so a changed function is always sent anew.
"""

from __future__ import annotations

import functools
import pickle
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hpcpool.wire import by_value, payload
from hpcpool.wire.fingerprint import Fingerprint
from hpcpool.wire.importable import find

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
    """Return the function of this key, opened once in each process; called, also by pickle, while a call is opened."""
    known = _loaded.get(key)
    if known is None:
        function, brought = by_value.loading(lambda: pickle.loads(blob_source(key)))
        _loaded[key] = _Loaded(function, brought)
        if len(_loaded) > LOADED_LIMIT:
            _loaded.popitem(last=False)
        return function  # type: ignore[no-any-return]
    _loaded.move_to_end(key)
    by_value.put_in_place(known.brought)
    return known.function


def called_function(name: str, blobs: Sequence[bytes]) -> Callable[..., Any]:
    """Return the function of a call whose payload holds only arguments.

    Args:
        name: of `PickledCall`.
        blobs: the keys of the call's blobs.

    Raises what importing or opening it raises.
    """
    return load_function(blobs[0]) if name == payload.FIRST_BLOB else find(name)


# -- at the client ----------------------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    function: weakref.ref[types.FunctionType]
    fingerprint: Fingerprint | None
    blob: Blob


class FunctionCache:
    """Blobs of the functions that one client submits. Safe to use from many threads."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def blob_of(self, function: types.FunctionType) -> Blob:
        """Return the blob of a function that must go by value; whatever pickling raises comes out."""
        entry = self._entries.get(id(function))
        if entry is not None and entry.function() is function:
            if entry.fingerprint is not None and entry.fingerprint.still_holds():
                return entry.blob
            previous: Blob | None = entry.blob
        else:
            previous = None
        import hashlib  # loads OpenSSL, which takes longer than all of this package: only when it is needed

        # Before the pickle: what another thread changes meanwhile is seen next time.
        fingerprint = Fingerprint(function)
        data = payload.dumps_by_value(function)
        key = hashlib.blake2b(data, digest_size=16).digest()
        blob = previous if previous is not None and previous.key == key else Blob(key, data)
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
