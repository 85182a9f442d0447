"""Payloads: what is pickled on one side and unpickled on the other, and how its pieces are packed into a message.

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
from typing import Any, NamedTuple

from hpcpool.errors import UnsharableError
from hpcpool.wire import by_value

#: Buffers below this stay inside the pickle: an own frame costs about as much as copying this many bytes.
OUT_OF_BAND_BYTES = 16 * 1024
#: Pieces up to this many bytes travel inside the header.
INLINE_BYTES = 16 * 1024

#: In a pickle: something of `__main__` by reference, which a worker could not follow.
_MAIN = b"__main__"
#: The module of pipe ends. Plain pickle copies the number of a descriptor, which is another one in a worker.
_PIPES = "multiprocessing.connection"
_PIPES_BYTES = _PIPES.encode()

Buffer = Any  # bytes, bytearray or memoryview


class Payload(NamedTuple):
    """One pickled object: the pickle and its out-of-band buffers."""

    data: bytes
    buffers: Sequence[Buffer] = ()


class Packed(NamedTuple):
    """Payloads laid out for a message; see `pack`."""

    data: bytes
    layout: tuple[int, ...]
    frames: Sequence[Buffer]


class PickledCall(NamedTuple):
    """A call ready to travel: its payload and the futures found among its arguments, in placeholder order."""

    payload: Payload
    dependencies: Sequence[Future[Any]]


# -- packing ----------------------------------------------------------------------------------------------------------


def pack(payloads: Sequence[Payload]) -> Packed:
    """Lay out payloads: small pieces joined inline, large ones as frames.

    The layout is empty for the common case of one small pickle. Otherwise it holds, for each payload, the number of
    its pieces and then each piece's length; -1 stands for the next frame.
    """
    if len(payloads) == 1 and not payloads[0].buffers and len(payloads[0].data) <= INLINE_BYTES:
        return Packed(payloads[0].data, (), ())
    inline: list[Buffer] = []
    frames: list[Buffer] = []
    layout: list[int] = []
    for payload in payloads:
        layout.append(1 + len(payload.buffers))
        for piece in (payload.data, *payload.buffers):
            size = memoryview(piece).nbytes
            if size <= INLINE_BYTES:
                inline.append(piece)
                layout.append(size)
            else:
                frames.append(piece)
                layout.append(-1)
    return Packed(b"".join(inline), tuple(layout), frames)


def unpack(data: Buffer, layout: Sequence[int], frames: Sequence[Buffer]) -> list[Payload]:
    """Undo `pack`. Inline out-of-band buffers are copied, so that what is built on them can be written to.

    Raises ValueError when layout and pieces do not fit.
    """
    if not layout:
        if frames:
            raise ValueError(f"{len(frames)} frames came without a layout")
        return [Payload(data)]
    pieces = _Pieces(data, frames)
    payloads: list[Payload] = []
    position = 0
    while position < len(layout):
        count = layout[position]
        lengths = layout[position + 1 : position + 1 + count]
        if count < 1 or len(lengths) != count:
            raise ValueError(f"layout names {count} pieces, {len(lengths)} lengths follow")
        position += 1 + count
        first = pieces.take(lengths[0])
        payloads.append(Payload(first, [pieces.take(length, is_buffer=True) for length in lengths[1:]]))
    pieces.check_all_taken()
    return payloads


class _Pieces:
    """The inline bytes and the frames of a message, from the front."""

    def __init__(self, data: Buffer, frames: Sequence[Buffer]) -> None:
        self._view = memoryview(data)
        self._frames = frames
        self._offset = 0
        self._used = 0

    def take(self, length: int, is_buffer: bool = False) -> Buffer:
        """Return the next frame (length below 0), or that many inline bytes; buffers are copied."""
        if length >= 0:
            piece = self._view[self._offset : self._offset + length]
            self._offset += length
            return bytearray(piece) if is_buffer else piece
        if self._used == len(self._frames):
            raise ValueError(f"layout names more frames than the {self._used} that came")
        self._used += 1
        return self._frames[self._used - 1]

    def check_all_taken(self) -> None:
        """Raise if the layout did not fit."""
        if self._offset != len(self._view) or self._used != len(self._frames):
            raise ValueError(
                f"layout names {self._offset} inline bytes and {self._used} frames, "
                f"{len(self._view)} and {len(self._frames)} came"
            )


# -- calls ------------------------------------------------------------------------------------------------------------


class _NeedsValue(Exception):
    """Plain pickle met something that only cloudpickle can carry."""


def _keep_in_band(buffers: list[Buffer], is_captured: bool, buffer: pickle.PickleBuffer) -> bool:
    """Say whether a buffer stays inside the pickle; note it in `buffers` if it does not."""
    try:
        raw = buffer.raw()
    except BufferError:  # not contiguous: pickle copies it
        return True
    if raw.nbytes < OUT_OF_BAND_BYTES:
        return True
    # Arguments are captured at submit: what the caller changes in place later must not be seen by the call. Read-only
    # memory may be a view of what can change; only bytes never do.
    buffers.append(bytearray(raw) if is_captured and type(raw.obj) is not bytes else raw)
    return False


class _Collector:
    """What both picklers gather besides bytes: large buffers and the futures met."""

    def __init__(
        self, references: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]], is_captured: bool = True
    ) -> None:
        self.is_captured = is_captured
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
        super().__init__(file, 5, buffer_callback=functools.partial(_keep_in_band, found.buffers, found.is_captured))
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
        return functools.partial(_keep_in_band, found.buffers, found.is_captured)

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


def pickle_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    references: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] | None = None,
) -> PickledCall:
    """Pickle a call; `references` maps the id of an object to what is pickled in its place.

    Raises whatever makes the arguments impossible to pickle (`SystemExit` becomes `PicklingError`).
    """
    try:
        payload, futures = _pickle((fn, args, kwargs), references or _NO_REFERENCES)
    except SystemExit as error:
        raise pickle.PicklingError(f"SystemExit({error.code!r}) was raised while pickling") from error
    return PickledCall(payload, futures)


def pickle_value(value: Any, *, is_captured: bool = False) -> Payload:
    """Pickle a call's result, or any single object without futures in it.

    Args:
        is_captured: copy large buffers, as the user may change them while the payload waits.
    """
    payload, futures = _pickle(value, _NO_REFERENCES, is_captured)
    if futures:
        raise TypeError("a future cannot be sent back as (part of) a result; return its value, or use join()")
    return payload


def _pickle(obj: Any, references: dict[int, Any], is_captured: bool = True) -> tuple[Payload, Sequence[Future[Any]]]:
    if not references and not by_value.has_registered_modules():
        # By far the most calls: what plain pickle can do without being asked about any object.
        buffers: list[Buffer] = []
        try:
            data = pickle.dumps(obj, 5, buffer_callback=functools.partial(_keep_in_band, buffers, is_captured))
        except Exception:  # noqa: BLE001 - a future, a lambda, …: the thorough ways below know what to do
            data = _MAIN
        if _MAIN not in data and _PIPES_BYTES not in data:
            return Payload(data, buffers), ()
    plain = None if by_value.has_registered_modules() else _pickle_plainly(obj, references, is_captured)
    if plain is not None:
        return plain
    found = _Collector(references, is_captured)
    return Payload(_dump(_ValuePickler, obj, found), found.buffers), found.futures


def _pickle_plainly(
    obj: Any, references: dict[int, Any], is_captured: bool
) -> tuple[Payload, Sequence[Future[Any]]] | None:
    """Pickle without cloudpickle; None if that cannot be done."""
    found = _Collector(references, is_captured)
    file = io.BytesIO()
    try:
        _PlainPickler(file, found).dump(obj)
    except Exception:  # noqa: BLE001 - whatever stopped plain pickle, cloudpickle has the last word
        return None
    data = file.getvalue()
    return (Payload(data, found.buffers), found.futures) if _MAIN not in data else None


def _dump(pickler: type[_ValuePickler], obj: Any, found: _Collector) -> bytes:
    """Pickle with one of the thorough picklers; say what to do where the user can do something."""
    file = io.BytesIO()
    try:
        pickler(file, found).dump(obj)
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


def load_dependency(index: int) -> Any:
    """Return the result that a placeholder stands for; called by pickle while a call is opened."""
    return _dependencies[index]


def unpickle(payload: Payload) -> Any:
    """Rebuild the object of one payload."""
    return pickle.loads(payload.data, buffers=payload.buffers)


def unpickle_call(payloads: Sequence[Payload]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Rebuild a call from its own payload and those of the results that it depends on, in placeholder order."""
    _dependencies[:] = [unpickle(payload) for payload in payloads[1:]]
    try:
        fn, args, kwargs = unpickle(payloads[0])
    finally:
        _dependencies.clear()
    return fn, args, kwargs


def dumps_by_value(obj: Any) -> bytes:
    """Pickle an object with its functions by value and everything in band (for blobs and worker set-ups)."""
    found = _Collector({})
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
    "Packed",
    "Payload",
    "PickledCall",
    "dumps_by_value",
    "install_main",
    "load_dependency",
    "pack",
    "pickle_call",
    "pickle_value",
    "unpack",
    "unpickle",
    "unpickle_call",
]
