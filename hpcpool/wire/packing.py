"""How the pieces of payloads are packed into a message, and found again: inline bytes, frames, references to segments.

Nothing is pickled or unpickled here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec import Struct

from hpcpool.wire import segment_files
from hpcpool.wire.segments import Segment, SegmentStore

log = logging.getLogger(__name__)

#: Pieces up to this many bytes travel inside the header.
INLINE_BYTES = 16 * 1024

Buffer = Any  # bytes, bytearray, memoryview or Segment


class Payload(Struct, frozen=True):
    """One pickled object: the pickle and its out-of-band buffers; large ones are segments."""

    data: Buffer
    buffers: Sequence[Buffer] = ()


class Packed(Struct, frozen=True):
    """Payloads laid out for a message; see `pack`."""

    data: bytes
    layout: tuple[int, ...]
    frames: Sequence[Buffer]
    #: Those that `data` has references to.
    segments: Sequence[Segment] = ()


def pack(payloads: Sequence[Payload]) -> Packed:
    """Lay out payloads: small pieces joined inline, large ones as frames, segments as references.

    The layout is empty for the common case of one small pickle. Otherwise it holds, for each payload, the number of
    its pieces and then each piece's length; -1 stands for the next frame, -2 - n for an inline reference of n bytes.
    """
    first = payloads[0]
    if len(payloads) == 1 and not first.buffers and type(first.data) is not Segment and len(first.data) <= INLINE_BYTES:
        return Packed(first.data, (), ())
    inline: list[Buffer] = []
    frames: list[Buffer] = []
    layout: list[int] = []
    shared: list[Segment] = []
    for payload in payloads:
        layout.append(1 + len(payload.buffers))
        for piece in (payload.data, *payload.buffers):
            if type(piece) is Segment:
                inline.append(piece.reference)
                layout.append(-2 - len(inline[-1]))
                shared.append(piece)
                continue
            size = len(piece) if type(piece) is bytes else memoryview(piece).nbytes
            if size <= INLINE_BYTES:
                inline.append(piece)
                layout.append(size)
            else:
                frames.append(piece)
                layout.append(-1)
    return Packed(b"".join(inline), tuple(layout), frames, shared)


def no_segments(reference: Buffer) -> Buffer:
    """Refuse to open a segment, where there are none."""
    raise ValueError("a reference to shared memory came where there is none")


def unpack(
    data: Buffer,
    layout: Sequence[int],
    frames: Sequence[Buffer],
    open_segment: Callable[[Buffer], Buffer] = no_segments,
) -> list[Payload]:
    """Undo `pack`. Inline out-of-band buffers are copied, so that what is built on them can be written to.

    Args:
        open_segment: makes a piece of a reference.

    Raises ValueError when layout and pieces do not fit.
    """
    if not layout:
        if frames:
            raise ValueError(f"{len(frames)} frames came without a layout")
        return [Payload(data)]
    pieces = _Pieces(data, frames, open_segment)
    payloads: list[Payload] = []
    for lengths in _by_payload(layout):
        first = pieces.take(lengths[0])
        payloads.append(Payload(first, [pieces.take(length, is_buffer=True) for length in lengths[1:]]))
    pieces.check_all_taken()
    return payloads


def references(data: Buffer, layout: Sequence[int]) -> list[bytes]:
    """Return the references to segments among the pieces of packed payloads; ValueError as `unpack`."""
    found: list[bytes] = []
    offset = 0
    for lengths in _by_payload(layout):
        for length in lengths:
            if length < -1:
                found.append(bytes(data[offset : offset - 2 - length]))
            offset += length if length >= 0 else 0 if length == -1 else -2 - length
    return found


def segments_in(data: Buffer, layout: Sequence[int]) -> dict[tuple[str, int], bytes]:
    """Return the segments among the pieces of packed payloads: path and bytes of each, and the reference to it.

    Raises ValueError as `unpack`.
    """
    return {segment_files.path_of(reference): reference for reference in references(data, layout)}


def discard(run_directory: str, data: Buffer, layout: Sequence[int]) -> None:
    """Remove the segments of packed payloads that nobody will get."""
    if not layout:
        return
    try:
        segment_files.discard(run_directory, references(data, layout))
    except ValueError as error:  # who opens it would say so, too
        log.warning("a malformed payload: %s", error)


def last_told(data: Buffer, layout: Sequence[int]) -> int:
    """Return the number of the latest segment among the pieces of a worker's packed payloads; 0 if there is none."""
    try:
        return segment_files.last_told(references(data, layout))
    except ValueError as error:  # who opens it will say so, too
        log.warning("a malformed payload: %s", error)
        return 0


def localised(payload: Payload, store: SegmentStore) -> Payload:
    """Return a payload whose segments, if it has any, are the store's own: another pool's are copied."""
    if not payload.buffers and type(payload.data) is not Segment:
        return payload
    pieces = [payload.data, *payload.buffers]
    if all(type(piece) is not Segment or piece.store is store for piece in pieces):
        return payload
    data, *buffers = [
        store.write(piece.view()) if type(piece) is Segment and piece.store is not store else piece for piece in pieces
    ]
    return Payload(data, buffers)


def pieces_away(payload: Payload) -> list[Segment]:
    """Return the segments of a payload whose content is on another host, or was."""
    return [piece for piece in (payload.data, *payload.buffers) if type(piece) is Segment and piece.is_away]


def _by_payload(layout: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut a layout into the lengths of each payload's pieces."""
    position = 0
    while position < len(layout):
        count = layout[position]
        lengths = layout[position + 1 : position + 1 + count]
        if count < 1 or len(lengths) != count:
            raise ValueError(f"layout names {count} pieces, {len(lengths)} lengths follow")
        position += 1 + count
        yield lengths


class _Pieces:
    """The inline bytes and the frames of a message, from the front."""

    def __init__(self, data: Buffer, frames: Sequence[Buffer], open_segment: Callable[[Buffer], Buffer]) -> None:
        self._view = memoryview(data)
        self._frames = frames
        self._open_segment = open_segment
        self._offset = 0
        self._used = 0

    def take(self, length: int, is_buffer: bool = False) -> Buffer:
        """Return the next frame (-1), segment (below), or that many inline bytes; buffers are copied."""
        if length != -1:
            size = length if length >= 0 else -2 - length
            piece = self._view[self._offset : self._offset + size]
            self._offset += size
            if length < 0:
                return self._open_segment(piece)
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
