"""What nodes on other hosts and the client's host say to each other about files, on connections of their own.

Both sides block: a worker that needs a file cannot go on without it, and the interchange has threads for this. A frame
is its length and so many bytes. A message is one frame, a MessagePack array; the content of a file is frames of at most
1 MiB with an empty one at the end, so memory stays flat however large the file is, and TCP says how many are on the
way.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
from typing import Any, NamedTuple

import msgspec

from hpcpool.wire.messages import MessageError, Struct

#: More at once saves nothing; less costs system calls.
CHUNK_BYTES = 1 << 20
#: Of no message but a path is long, and a path has at most 4096 bytes.
_MOST_BYTES = 1 << 16
_LENGTH = struct.Struct("!I")
_END = _LENGTH.pack(0)

#: Size in bytes and time of the last change in nanoseconds: which state of a file is meant.
Identity = tuple[int, int]


class Greeting(Struct, tag=5):
    """The first words of a worker: whose it is."""

    #: The manager, as `manager_name` has it.
    manager: str


class SeeFile(Struct, tag=1):
    """Which state is this file of the client in?"""

    path: str
    #: What it was in when the call was submitted; None: it was not there, or nobody looked.
    seen: Identity | None = None


class SeeFolder(Struct, tag=2):
    """Can a file be made in this folder of the client?"""

    path: str
    #: The name of a file that the node has just made there; "": it could not.
    probe: str = ""


class GetFile(Struct, tag=3):
    """The node wants the content of a file of the client, in this state."""

    path: str
    identity: Identity


class PutFile(Struct, tag=4):
    """The node has made this file for the client."""

    path: str
    size: int
    is_executable: bool = False


class SeePlace(Struct, tag=6):
    """May the node make this file of the client?"""

    path: str


class FileSeen(Struct, tag=10):
    """The file is there."""

    identity: Identity


class FileAbsent(Struct, tag=11):
    """There is no such file."""


class FolderSeen(Struct, tag=12):
    """The folder is there; with the probe in it, it is the same as on the node."""

    has_probe: bool


class Ready(Struct, tag=13):
    """The content follows, or may follow, or may be made."""

    is_executable: bool = False


class End(Struct, tag=14):
    """That was the content: its SHA-256 hash (32 bytes), which many processors compute themselves."""

    digest: bytes


class Done(Struct, tag=15):
    """The file is in its place."""


class Refusal(Struct, tag=16):
    """It cannot be done."""

    errno: int
    text: str


class Differs(Struct, tag=17):
    """The file is not in the state that it must be in."""

    text: str


Request = Greeting | SeeFile | SeeFolder | SeePlace | GetFile | PutFile
Answer = FileSeen | FileAbsent | FolderSeen | Ready | End | Done | Refusal | Differs
_encode = msgspec.msgpack.Encoder().encode


@functools.cache
def _decoder() -> msgspec.msgpack.Decoder[Request | Answer]:
    """Made when it is first needed: most pools send no files."""
    return msgspec.msgpack.Decoder(Request | Answer)


def manager_name(host: str, pid: int) -> str:
    """Return what tells a manager from others of its block; arguments as in its `Hello`."""
    return f"{host}:{pid}"


class Content(NamedTuple):
    """What has gone over the line."""

    size: int
    digest: bytes
    #: Why the file could not be read or written to the end; the line is in order all the same.
    trouble: OSError | None


class FileLine:
    """One end of a connection, a blocking socket (or what looks like one); used by one thread at a time.

    All methods raise `ConnectionError` or `TimeoutError` when the other side has gone or says nothing.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def say(self, message: Request | Answer) -> None:
        """Send a message."""
        data = _encode(message)
        self._send(_LENGTH.pack(len(data)) + data)

    def hear(self) -> Request | Answer | None:
        """Wait for a message; None: the other side has gone. `MessageError` if it is none."""
        head = bytearray(_LENGTH.size)
        if not self._fill(memoryview(head), is_end_expected=True):
            return None
        (length,) = _LENGTH.unpack(head)
        if length > _MOST_BYTES:
            raise MessageError(f"a message of {length} bytes announced, about a file")
        data = bytearray(length)
        self._fill(memoryview(data))
        try:
            return _decoder().decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MessageError(f"not a message about a file: {error}") from error

    def send_content(self, descriptor: int) -> Content:
        """Send an open file from where it stands to its end."""
        import hashlib  # most pools send no files

        digest, size, trouble = hashlib.sha256(), 0, None
        with memoryview(bytearray(_LENGTH.size + CHUNK_BYTES)) as buffer:
            body = buffer[_LENGTH.size :]
            while True:
                try:
                    count = os.readv(descriptor, [body])
                except OSError as error:
                    count, trouble = 0, error
                if not count:
                    break
                digest.update(body[:count])
                _LENGTH.pack_into(buffer, 0, count)
                self._send(buffer[: _LENGTH.size + count])
                size += count
        self._send(_END)
        return Content(size, digest.digest(), trouble)

    def receive_content(self, descriptor: int) -> Content:
        """Write what comes to an open file; what it has no room for is dropped, and told."""
        import hashlib

        digest, size, trouble = hashlib.sha256(), 0, None
        head = bytearray(_LENGTH.size)
        with memoryview(bytearray(CHUNK_BYTES)) as buffer:
            while True:
                self._fill(memoryview(head))
                (count,) = _LENGTH.unpack(head)
                if count > CHUNK_BYTES:
                    raise MessageError(f"a piece of {count} bytes of a file announced")
                if not count:
                    return Content(size, digest.digest(), trouble)
                chunk = buffer[:count]
                self._fill(chunk)
                size += count
                if trouble is None:
                    digest.update(chunk)
                    try:
                        _write(descriptor, chunk)
                    except OSError as error:
                        trouble = error

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def _send(self, data: Any) -> None:
        try:
            self._end.sendall(data)
        except OSError as error:
            raise _broken(error) from error

    def _fill(self, view: memoryview, *, is_end_expected: bool = False) -> bool:
        """Read until the view is full; False: nothing came and the other side has gone, which is no surprise."""
        filled = 0
        while filled < len(view):
            try:
                count = self._end.recv_into(view[filled:])
            except OSError as error:
                raise _broken(error) from error
            if not count:
                if is_end_expected and not filled:
                    return False
                raise ConnectionResetError("the other side has gone")
            filled += count
        return True


def _broken(error: OSError) -> OSError:
    """A connection's trouble under a name that no file's trouble has: TLS has errors of its own."""
    return error if isinstance(error, ConnectionError | TimeoutError) else ConnectionResetError(str(error))


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
