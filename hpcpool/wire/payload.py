"""Payloads: what is pickled on one side and unpickled on the other (see `wire.packing` for its way in between).

Only the client and the workers open payloads. Plain pickle (protocol 5, large buffers out of band) is tried first;
what it cannot do by reference (anything of `__main__`, lambdas, closures, local classes) goes through cloudpickle by
value. A future met anywhere while pickling becomes a placeholder and is noted as a dependency.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from hpcpool.errors import UnsharableError, is_from_handler
from hpcpool.wire import by_value
from hpcpool.wire.importable import has_registered_modules, name_to_import
from hpcpool.wire.packing import Buffer, Payload
from hpcpool.wire.segments import SEGMENT_BYTES, Segment, SegmentStore

if TYPE_CHECKING:
    from hpcpool.wire.functions import Blob

#: Buffers below this stay inside the pickle: an own frame costs about as much as copying this many bytes.
OUT_OF_BAND_BYTES = 16 * 1024

#: Types whose values plain pickle writes as they are: no buffer, no future and nothing of `__main__` can be in them.
_SIMPLE = frozenset({type(None), bool, float, complex})
#: Larger numbers are not small.
_LARGEST_INT = 1 << 256
#: The same for functions that are found by their names.
_BY_NAME = frozenset({types.FunctionType, types.BuiltinFunctionType})

#: Stands for a function's name: it is the first of the call's blobs.
FIRST_BLOB = "*"

#: In a pickle: something of `__main__` (or `__mp_main__`) by reference, which a worker could not follow.
_MAIN = b"_main__"
#: The module of pipe ends. Plain pickle copies the number of a descriptor, which is another one in a worker.
_PIPES = "multiprocessing.connection"
_PIPES_BYTES = _PIPES.encode()


class PickledCall(Struct, frozen=True):
    """A call ready to travel."""

    payload: Payload
    #: The futures found among its arguments, in placeholder order.
    dependencies: Sequence[Future[Any]] = ()
    #: The function's module:name, or `FIRST_BLOB`, where the payload holds only its positional arguments; "": all is in
    #: the payload.
    function: str = ""
    #: The functions by value that it needs.
    blobs: Sequence[Blob] = ()


# -- calls ------------------------------------------------------------------------------------------------------------


class _NeedsValue(Exception):
    """Plain pickle met something that only cloudpickle can carry."""


class _Keeper:
    """Says where large buffers go that are met while pickling: into segments, if there is a store.

    Args:
        is_captured: what the caller changes in place later must not be seen; else what does not go into a segment is
            sent before the caller goes on.
        is_whole: buffers that do not go into segments stay inside the pickle. So all of a large object is in segments,
            however many small arrays it is made of.
    """

    __slots__ = ("_in_band_bytes", "_is_captured", "store")

    def __init__(self, store: SegmentStore | None, is_captured: bool, is_whole: bool = False) -> None:
        self.store = store
        self._is_captured = is_captured
        self._in_band_bytes = SEGMENT_BYTES if is_whole else OUT_OF_BAND_BYTES

    def keep_in_band(self, buffers: list[Buffer], buffer: pickle.PickleBuffer) -> bool:
        """Say whether a buffer stays inside the pickle; note it in `buffers` if it does not."""
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: pickle copies it
            return True
        if raw.nbytes < self._in_band_bytes:
            return True
        if self.store is not None and raw.nbytes >= SEGMENT_BYTES:
            try:
                buffers.append(self.store.share(raw) if self._is_captured else self.store.write(raw))
            except OSError as error:
                if is_from_handler(error):
                    raise
                self.store.warn_of(error)
            else:
                return False
        # Read-only memory may be a view of what can change; only bytes never do.
        buffers.append(bytearray(raw) if self._is_captured and type(raw.obj) is not bytes else raw)
        return False

    def payload(self, data: bytes, buffers: list[Buffer]) -> Payload:
        """Return what was pickled; a large pickle is a segment, too."""
        if self.store is not None and len(data) >= SEGMENT_BYTES:
            try:
                return Payload(self.store.write(data), buffers)
            except OSError as error:
                if is_from_handler(error):
                    raise
                self.store.warn_of(error)
        return Payload(data, buffers)


class _Collector:
    """What both picklers gather besides bytes: large buffers and the futures met."""

    def __init__(self, references: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]], keeper: _Keeper) -> None:
        self.keeper = keeper
        self.buffers: list[Buffer] = []
        self.futures: list[Future[Any]] = []
        self._placeholders: dict[int, int] = {}
        self.references = references

    def placeholder(self, future: Future[Any]) -> tuple[Callable[..., Any], tuple[int]]:
        """Return what stands for a future in the pickle."""
        index = self._placeholders.setdefault(id(future), len(self.futures))
        if index == len(self.futures):
            self.futures.append(future)
        return (load_dependency, (index,))


class _PlainPickler(pickle.Pickler):
    """The fast way: refuses what must go by value instead of writing a reference that no worker can follow."""

    def __init__(self, file: io.BytesIO, found: _Collector) -> None:
        super().__init__(file, 5, buffer_callback=functools.partial(found.keeper.keep_in_band, found.buffers))
        self._found = found

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is types.FunctionType or issubclass(kind, type):
            reference = self._found.references.get(id(obj))
            if reference is not None:
                return reference
            if not by_value.is_importable(obj):
                raise _NeedsValue
        elif isinstance(obj, Future):
            return self._found.placeholder(obj)
        elif kind.__module__ == _PIPES:
            raise _NeedsValue
        return NotImplemented


class _ValuePickler(by_value.Pickler):
    """The thorough way: cloudpickle, with the namespace of `__main__` kept one in each worker."""

    def __init__(self, file: io.BytesIO, found: _Collector) -> None:
        super().__init__(file, 5, buffer_callback=self._buffer_callback(found))
        self._found = found

    @staticmethod
    def _buffer_callback(found: _Collector) -> Callable[[pickle.PickleBuffer], bool] | None:
        return functools.partial(found.keeper.keep_in_band, found.buffers)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Future):
            return self._found.placeholder(obj)
        if type(obj).__module__ == _PIPES:
            raise UnsharableError(
                f"a {type(obj).__name__} of {_PIPES} cannot reach a worker, which is not a child of this process; use "
                "a queue of a multiprocessing.Manager(), or a Listener here and a Client in the call"
            )
        reference = self._found.references.get(id(obj))
        if reference is not None:
            return reference
        return super().reducer_override(obj)


_NO_REFERENCES: dict[int, Any] = {}
_CAPTURING = _Keeper(None, is_captured=True)
_LENDING = _Keeper(None, is_captured=False)


def call_by_name(fn: Callable[..., Any], args: tuple[Any, ...]) -> PickledCall | None:
    """Pickle the call of a function that is found by its name, with simple and small arguments; None: it is another.

    A shortcut for the calls that should cost next to nothing. A future is a simple argument.
    """
    if type(fn) not in _BY_NAME or has_registered_modules():
        return None
    name = name_to_import(fn)
    return _simple_call(name, args) if name is not None else None


def _simple_call(function: str, args: tuple[Any, ...], blobs: Sequence[Blob] = ()) -> PickledCall | None:
    """Pickle only the arguments of a call; None: they are not simple and small."""
    futures: Sequence[Future[Any]] = ()
    if not all(map(_is_simple, args)):
        if not all(map(_is_simple_or_future, args)):  # no generator: Ctrl-C that strikes while one is closed is lost
            return None
        args, futures = _placed(args)
    data = pickle.dumps(args, 5)
    return PickledCall(Payload(data), futures, function, blobs) if len(data) < OUT_OF_BAND_BYTES else None


class _Placeholder:
    """Is pickled as what stands for a future."""

    __slots__ = ("_reduced",)

    def __init__(self, reduced: tuple[Any, ...]) -> None:
        self._reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


def _is_simple_or_future(value: Any) -> bool:
    return isinstance(value, Future) or _is_simple(value)


def _placed(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Sequence[Future[Any]]]:
    """Put placeholders in the place of arguments that are futures (not of those inside of others)."""
    found = _Collector(_NO_REFERENCES, _CAPTURING)
    return tuple([_Placeholder(found.placeholder(a)) if isinstance(a, Future) else a for a in args]), found.futures


def _is_simple(value: Any) -> bool:
    """Say whether plain pickle writes a value as it is, and shortly."""
    kind = type(value)
    if kind is int:
        return -_LARGEST_INT < value < _LARGEST_INT  # type: ignore[no-any-return]
    return kind in _SIMPLE or ((kind is str or kind is bytes) and len(value) < OUT_OF_BAND_BYTES)


def pickle_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    references: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] | None = None,
    store: SegmentStore | None = None,
) -> PickledCall:
    """Pickle a call.

    Args:
        fn, args, kwargs: the call.
        references: from the id of an object to what is pickled in its place.
        store: makes segments of large buffers.

    Raises whatever makes the arguments impossible to pickle (`SystemExit` becomes `PicklingError`).
    """
    lifted = _lifted(args, store)
    placed, futures = _placed(lifted)
    # Plain pickle could not do what there are references to.
    plain = None if references else (fn, placed, kwargs)
    return PickledCall(*_captured(plain, futures, (fn, lifted, kwargs), references or _NO_REFERENCES, store))


def pickle_call_of_blob(
    blob: Blob,
    args: tuple[Any, ...],
    references: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]],
    store: SegmentStore | None = None,
) -> PickledCall:
    """Pickle a call of a function by value that has no keywords; the rest as of `pickle_call`."""
    if (call := _simple_call(FIRST_BLOB, args, (blob,))) is not None:
        return call
    lifted = _lifted(args, store)
    # The function may be among the arguments. Plain pickle cannot do that, and it is referred to.
    return PickledCall(*_captured(*_placed(lifted), lifted, references, store), FIRST_BLOB, (blob,))


def _captured(
    plain: Any, futures: Sequence[Future[Any]], whole: Any, references: dict[int, Any], store: SegmentStore | None
) -> tuple[Payload, Sequence[Future[Any]]]:
    """Pickle `plain`, which has placeholders for `futures`; if that cannot be, `whole`, the same without."""
    keeper = _CAPTURING if store is None else _Keeper(store, is_captured=True)
    try:
        if plain is not None and (payload := _plainly_at_once(plain, keeper)) is not None:
            return payload, futures
        return _pickle(whole, references, keeper)
    except SystemExit as error:
        raise pickle.PicklingError(f"SystemExit({error.code!r}) was raised while pickling") from error


def pickle_value(
    value: Any,
    *,
    is_captured: bool = False,
    is_whole: bool = False,
    store: SegmentStore | None = None,
    no_future: str = "a future cannot be sent back as (part of) a result; return its value, or use join()",
) -> Payload:
    """Pickle a call's result, or any single object.

    Args:
        value: the object.
        is_captured: copy large buffers, as the user may change them while the payload waits.
        is_whole: with a store: all of an object from 128 KiB on goes into segments.
        store: makes segments of large buffers.
        no_future: what a `TypeError` says if there is a future in it.
    """
    if _is_simple(value):
        return Payload(pickle.dumps(value, 5))
    usual = _CAPTURING if is_captured else _LENDING
    keeper = usual if store is None else _Keeper(store, is_captured, is_whole)
    (lifted,) = _lifted((value,), store)
    payload = _plainly_at_once(lifted, keeper)
    if payload is None:
        payload, futures = _pickle(lifted, _NO_REFERENCES, keeper)
        if futures:
            raise TypeError(no_future)
    return payload


class _Bytes:
    """Stands for a large bytes object, which pickle would copy into its stream."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Callable[[Buffer], bytes], tuple[pickle.PickleBuffer]]:
        return load_bytes, (pickle.PickleBuffer(self._value),)


def load_bytes(buffer: Buffer) -> bytes:
    """Return a large bytes object that travelled as a buffer; called by pickle."""
    return buffer if type(buffer) is bytes else bytes(buffer)


def _lifted(args: tuple[Any, ...], store: SegmentStore | None) -> tuple[Any, ...]:
    """Let large bytes objects among the arguments themselves travel as buffers."""
    if store is None:
        return args
    for arg in args:
        if type(arg) is bytes and len(arg) >= SEGMENT_BYTES:
            return tuple(_Bytes(arg) if type(arg) is bytes and len(arg) >= SEGMENT_BYTES else arg for arg in args)
    return args


def _pickle(obj: Any, references: dict[int, Any], keeper: _Keeper) -> tuple[Payload, Sequence[Future[Any]]]:
    plain = None if has_registered_modules() else _pickle_plainly(obj, references, keeper)
    if plain is not None:
        return plain
    found = _Collector(references, keeper)
    return keeper.payload(_dump(_ValuePickler, obj, found), found.buffers), found.futures


def _plainly_at_once(obj: Any, keeper: _Keeper) -> Payload | None:
    """Pickle what plain pickle can do without asking about any object, as by far the most; None: it cannot."""
    if has_registered_modules():
        return None
    buffers: list[Buffer] = []
    try:
        data = pickle.dumps(obj, 5, buffer_callback=functools.partial(keeper.keep_in_band, buffers))
    except Exception as error:
        if is_from_handler(error):
            raise
        return None
    return keeper.payload(data, buffers) if _MAIN not in data and _PIPES_BYTES not in data else None


def _pickle_plainly(
    obj: Any, references: dict[int, Any], keeper: _Keeper
) -> tuple[Payload, Sequence[Future[Any]]] | None:
    """Pickle without cloudpickle; None if that cannot be done."""
    found = _Collector(references, keeper)
    file = io.BytesIO()
    try:
        _PlainPickler(file, found).dump(obj)
    except Exception as error:
        if is_from_handler(error):
            raise
        return None
    data = file.getvalue()
    return (keeper.payload(data, found.buffers), found.futures) if _MAIN not in data else None


def _dump(pickler: type[_ValuePickler], obj: Any, found: _Collector) -> bytes:
    """Pickle with one of the thorough picklers; say what to do where the user can do something."""
    file = io.BytesIO()
    try:
        pickler(file, found).dump(obj)
    except pickle.PicklingError as error:
        if isinstance(error.__cause__, RecursionError):  # in cloudpickle's words
            raise error.__cause__ from None
        raise
    except RuntimeError as error:
        if "through inheritance" in str(error):
            raise UnsharableError(
                f"{error}. Workers are not children of this process, so locks, queues, events and other shared objects "
                "of multiprocessing cannot reach them; use a proxy instead: multiprocessing.Manager().Lock(), "
                ".Queue(), .Event() …"
            ) from error
        raise
    return file.getvalue()


# -- opening ----------------------------------------------------------------------------------------------------------

#: The values that stand for the placeholders of the call that is being opened; set by `unpickle_call` only.
_dependencies: list[Any] = []


#: How many bytes the end of a pickle has that begins with this opcode and holds nothing else, the stop included.
_SCALAR_BYTES = {
    pickle.NONE: 2,
    pickle.NEWTRUE: 2,
    pickle.NEWFALSE: 2,
    pickle.BININT1: 3,
    pickle.BININT2: 4,
    pickle.BININT: 6,
    pickle.BINFLOAT: 10,
}


def load_dependency(index: int) -> Any:
    """Return the result that a placeholder stands for; called by pickle while a call is opened."""
    return _dependencies[index]


def unpickle(payload: Payload, *, is_last: bool = False) -> Any:
    """Rebuild the object of one payload.

    Args:
        is_last: nobody will open its segments again.
    """
    data, buffers = payload.data, payload.buffers
    if not buffers and type(data) is not Segment:
        return pickle.loads(data)
    if type(data) is Segment:
        data = data.view(is_last=is_last)
    if buffers:
        buffers = [buffer.view(is_last=is_last) if type(buffer) is Segment else buffer for buffer in buffers]
    return pickle.loads(data, buffers=buffers)


def is_scalar(data: Buffer) -> bool:
    """Say whether a pickle is that of None, a bool, a number of up to 32 bits or a float: to open it runs no code."""
    start = 11 if data[2:3] == b"\x95" else 2  # behind the protocol, and the frame if there is one
    return data[-1:] == pickle.STOP and _SCALAR_BYTES.get(data[start : start + 1]) == len(data) - start


def unpickle_call(
    payloads: Sequence[Payload], find_function: Callable[[], Callable[..., Any]] | None = None
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Rebuild a call from its own payload and those of the results that it depends on, in placeholder order.

    Args:
        payloads: of these.
        find_function: finds the function of a call whose payload holds only its arguments.
    """
    _dependencies[:] = [unpickle(payload) for payload in payloads[1:]]
    try:
        if find_function is None:
            return unpickle(payloads[0])  # type: ignore[no-any-return]
        # Before the arguments, which may lean on what its modules do when they are imported.
        return find_function(), unpickle(payloads[0]), {}
    finally:
        _dependencies.clear()


def dumps_by_value(obj: Any) -> bytes:
    """Pickle an object with its functions by value and everything in band (for blobs and worker set-ups)."""
    found = _Collector({}, _CAPTURING)
    data = _dump(_ValueOnlyPickler, obj, found)
    if found.futures:
        raise TypeError("a function closes over a future (or holds it in a global); pass the future as an argument")
    return data


class _ValueOnlyPickler(_ValuePickler):
    """Keeps everything in band: a blob is one piece."""

    @staticmethod
    def _buffer_callback(found: _Collector) -> None:
        return None


def install_main() -> None:
    """Give this process an empty `__main__`, in which functions of the user's `__main__` come to live."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main


__all__ = [
    "FIRST_BLOB",
    "PickledCall",
    "call_by_name",
    "dumps_by_value",
    "install_main",
    "is_scalar",
    "load_bytes",
    "load_dependency",
    "pickle_call",
    "pickle_call_of_blob",
    "pickle_value",
    "unpickle",
    "unpickle_call",
]
