"""Streams by name on one event loop. It moves messages; what they say is the caller's affair."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

from hpcpool.processes.event_loop import READ, WRITE, EventLoop
from hpcpool.wire.lasting_stream import LastingStream
from hpcpool.wire.messages import MessageError, deal_frames, encode
from hpcpool.wire.stream import Message, Stream

log = logging.getLogger(__name__)

#: Takes the name, the messages that are complete, and whether the stream is still open.
OnMessages = Callable[[bytes, list[Message], bool], None]
#: Takes messages, each with its frames.
Hear = Callable[[list[tuple[Any, list[Any]]]], None]


class Streams:
    """Reads from many streams, and writes to them when they have room. Belongs to the loop's thread."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._streams: dict[bytes, Stream] = {}
        #: Those in this process: they need no stream.
        self._neighbours: dict[bytes, Hear] = {}
        #: Those that the loop watches for room: exactly those in which something waits.
        self._full: set[bytes] = set()

    def __contains__(self, name: bytes) -> bool:
        return name in self._streams or name in self._neighbours

    def add_neighbour(self, name: bytes, hear: Hear) -> None:
        """Hand what is sent to this name over, there and then."""
        self._neighbours[name] = hear

    def add(self, name: bytes, stream: Stream, on_messages: OnMessages) -> None:
        """Call `on_messages` whenever something has come, or the stream has ended; then it should be removed."""
        self._streams[name] = stream
        self._loop.add(stream, functools.partial(self._on_ready, name, stream, on_messages))

    def remove(self, name: bytes) -> None:
        """Close a stream; nothing happens if it is not known."""
        self._neighbours.pop(name, None)
        stream = self._streams.pop(name, None)
        if stream is not None:
            self._full.discard(name)
            self._loop.remove(stream)
            stream.close()

    def can_last(self, name: bytes) -> bool:
        """Whether its connection has gone, and another may take its place."""
        stream = self._streams.get(name)
        return isinstance(stream, LastingStream) and not stream.is_open

    def has_broken(self, name: bytes) -> bool:
        """Whether a connection that has gone was broken; False: the other side has ended it, or died."""
        return bool(self._streams[name].trouble)

    def cut_off(self, name: bytes) -> None:
        """Let go of the connection; what is sent to it waits until it goes on."""
        self._full.discard(name)
        stream = self._streams[name]
        self._loop.remove(stream)
        cast(LastingStream, stream).break_off()

    def go_on(self, name: bytes, fresh: Stream, has_had: int, on_messages: OnMessages) -> None:
        """Go on over another connection; arguments and errors as of `LastingStream.go_on`, the last as of `add`."""
        stream = cast(LastingStream, self._streams[name])
        stream.confirmed(has_had)
        self.cut_off(name)  # it may not have seen yet that the old one is broken
        stream.go_on(fresh, has_had)
        self._loop.add(stream, functools.partial(self._on_ready, name, stream, on_messages))
        self._watch_writes(name, stream)

    def close(self) -> None:
        """Close all of them."""
        for name in [*self._streams, *self._neighbours]:
            self.remove(name)

    def send(self, name: bytes, messages: Sequence[Any], frames: Sequence[Any] = ()) -> None:
        """Send a batch, now or when there is room; it is lost if the stream is not known."""
        stream = self._streams.get(name)
        if stream is not None:
            stream.send(encode(messages), frames)
            self._watch_writes(name, stream)
        elif (hear := self._neighbours.get(name)) is not None:
            hear(deal_frames(messages, frames))

    def _on_ready(self, name: bytes, stream: Stream, on_messages: OnMessages, events: int) -> None:
        if events & WRITE:
            stream.flush()
            self._watch_writes(name, stream)
        if events & READ:
            try:
                messages = stream.receive()
            except MessageError as error:
                log.error("stream=%r closed: %s", name, error)
                on_messages(name, [], False)
            else:
                on_messages(name, messages, stream.is_open)

    def _watch_writes(self, name: bytes, stream: Stream) -> None:
        if stream.wants_to_write is not (name in self._full):
            self._full ^= {name}
            self._loop.change(stream, READ | WRITE if name in self._full else READ)
