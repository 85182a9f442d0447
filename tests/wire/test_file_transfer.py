"""Messages and contents over a line between two threads, and what is no message."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcpool.wire.file_transfer import (
    CHUNK_BYTES,
    Content,
    Differs,
    Done,
    End,
    FileAbsent,
    FileLine,
    FileSeen,
    FolderSeen,
    GetFile,
    Greeting,
    PutFile,
    Ready,
    Refusal,
    SeeFile,
    SeeFolder,
    SeePlace,
)
from hpcpool.wire.messages import MessageError

MESSAGES = [
    Greeting("host:1"),
    SeeFile("/x", (1, 2**62)),
    SeeFile("/x"),
    SeeFolder("/", ".probe"),
    SeePlace("/x"),
    GetFile("/ä", (0, 0)),
    PutFile("/x", 2**40, True),
    FileSeen((1, 2)),
    FileAbsent(),
    FolderSeen(True),
    Ready(True),
    End(b"d" * 32),
    Done(),
    Refusal(2, "no"),
    Differs("other"),
]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(10)
    yield ends
    for end in ends:
        end.close()


@contextlib.contextmanager
def meanwhile(act: Callable[..., Any], *args: Any) -> Iterator[list[Any]]:
    """Do something in another thread; what it returned is in the list afterwards."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(act(*args)))
    thread.start()
    yield results
    thread.join()


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_arrive_as_they_were_said(ends, message):
    FileLine(ends[0]).say(message)
    assert FileLine(ends[1]).hear() == message


def test_the_end_between_messages_is_no_error_and_in_the_middle_is_one(ends):
    ends[0].sendall(b"\0")
    ends[0].close()
    with pytest.raises(ConnectionResetError, match="has gone"):
        FileLine(ends[1]).hear()
    assert FileLine(ends[1]).hear() is None


@pytest.mark.parametrize(
    "data",
    [struct.pack("!I", 2**31), struct.pack("!I", 3) + b"abc", struct.pack("!I", 2) + b"\x92\x63"],
    ids=["long", "no MessagePack", "cut"],
)
def test_what_is_no_message_is_refused(ends, data):
    ends[0].sendall(data)
    with pytest.raises(MessageError):
        FileLine(ends[1]).hear()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 3])
def test_a_content_of_any_size_arrives_with_its_hash_and_the_line_goes_on(ends, tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "x").write_bytes(data)
    source, target = opened(tmp_path / "x"), opened(tmp_path / "y")
    with meanwhile(FileLine(ends[0]).send_content, source) as sent:
        received = FileLine(ends[1]).receive_content(target)
    assert received == sent[0] == Content(size, hashlib.sha256(data).digest(), None)
    assert (tmp_path / "y").read_bytes() == data
    FileLine(ends[0]).say(Done())
    assert FileLine(ends[1]).hear() == Done()
    os.close(source)
    os.close(target)


def test_what_cannot_be_written_is_told_and_the_line_is_in_order(ends, tmp_path):
    (tmp_path / "x").write_bytes(bytes(3 * CHUNK_BYTES))
    source, target = opened(tmp_path / "x"), os.open("/dev/full", os.O_WRONLY)
    with meanwhile(FileLine(ends[0]).send_content, source):
        received = FileLine(ends[1]).receive_content(target)
    assert received.size == 3 * CHUNK_BYTES
    assert received.trouble is not None
    assert received.trouble.strerror == "No space left on device"
    FileLine(ends[0]).say(Done())
    assert FileLine(ends[1]).hear() == Done()
    os.close(source)
    os.close(target)


def test_what_cannot_be_read_is_told_and_the_line_is_in_order(ends, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    sent = FileLine(ends[0]).send_content(folder)
    assert isinstance(sent.trouble, IsADirectoryError)
    target = opened(tmp_path / "y")
    assert FileLine(ends[1]).receive_content(target).size == 0
    os.close(folder)
    os.close(target)


def test_a_piece_that_is_too_long_is_refused(ends, tmp_path):
    ends[0].sendall(struct.pack("!I", CHUNK_BYTES + 1))
    target = opened(tmp_path / "y")
    with pytest.raises(MessageError, match="a piece of"):
        FileLine(ends[1]).receive_content(target)
    os.close(target)


def test_a_side_that_says_nothing_is_not_waited_for_for_ever(ends):
    ends[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        FileLine(ends[1]).hear()
