"""How workers find the client's files: the word that the manager leaves, and the way in over TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

from hpcpool.processes.connection import Connection
from hpcpool.processes.dialling import Unreachable
from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.file_desk import FileDesk
from hpcpool.processes.file_port import address_of, leave_word, read_word, ways_to
from hpcpool.processes.guests import Guests
from hpcpool.wire import staged
from hpcpool.wire.file_transfer import FileSeen, SeeFile
from hpcpool.wire.tls import FILES_PROTOCOL


@pytest.mark.parametrize(
    ("found_at", "expected"),
    [
        (("10.0.0.1", 80), "tcp://10.0.0.1:80"),
        (("2001:db8::1", 80, 0, 0), "tcp://[2001:db8::1]:80"),
        (("fe80::1", 80, 0, 3), "tcp://[fe80::1%3]:80"),
    ],
)
def test_the_address_of_the_interchange_is_passed_on(found_at, expected):
    assert address_of(found_at) == expected


@pytest.mark.parametrize(
    ("found_at", "expected"),
    [
        ("tunnel://login:1", ["tunnel://login:1", "tunnel://login:2"]),
        ("tcp://client:9", ["tcp://10.0.0.1:9"]),  # a name may stand for several machines
    ],
)
def test_all_addresses_of_a_tunnel_are_passed_on(found_at, expected):
    connection = Connection(["tcp://client:9", "tunnel://login:1", "tunnel://login:2"], "fork")
    assert ways_to(connection, found_at, ("10.0.0.1", 9)) == expected


def test_a_worker_comes_in_by_the_word_of_its_manager_and_is_answered(tmp_path, monkeypatch):
    monkeypatch.setenv(staged.FOLDER_VARIABLE, "")  # so that it is put back
    (tmp_path / "x").write_bytes(b"data")
    loop, desk, streams = EventLoop(), FileDesk(), []
    guests = Guests(loop, (0, 0), lambda stream, block: streams.append(stream), {FILES_PROTOCOL: desk.admit})
    authority, key = guests.keys.authority.decode(), guests.keys.issue("a-0").decode()
    connection = Connection([], "fork", authority=authority, key=key)
    leave_word(str(tmp_path), connection, [f"tcp://127.0.0.1:{guests.port}"], "host:1")
    assert os.environ[staged.FOLDER_VARIABLE] == str(tmp_path)
    assert (tmp_path / "files.json").stat().st_mode & 0o777 == 0o600
    answers: list[object] = []

    def ask() -> None:
        with contextlib.closing(read_word(str(tmp_path)).open()) as line:
            line.say(SeeFile(str(tmp_path / "x")))
            answers.append(line.hear())

    worker = threading.Thread(target=ask)
    worker.start()
    while worker.is_alive():
        loop.wait(0.05)
    worker.join()
    desk.close()
    guests.close()
    found = (tmp_path / "x").stat()
    assert answers == [FileSeen((found.st_size, found.st_mtime_ns))]
    assert streams == []


def test_that_there_is_no_way_in_is_a_connection_error(tmp_path, monkeypatch):
    monkeypatch.setenv(staged.FOLDER_VARIABLE, "")
    guests = Guests(EventLoop(), (0, 0), lambda stream, block: None, {})
    authority, key = guests.keys.authority.decode(), guests.keys.issue("a-0").decode()
    guests.close()
    connection = Connection([], "fork", authority=authority, key=key)
    leave_word(str(tmp_path), connection, [f"tcp://127.0.0.1:{guests.port}"], "host:1")
    monkeypatch.setattr("hpcpool.processes.file_port._DIAL_S", 0.1)
    with pytest.raises(ConnectionError, match="the interchange cannot be reached"):
        read_word(str(tmp_path)).open()


@pytest.mark.parametrize("scheme", ["tunnel", "tcp"])
def test_a_tunnel_that_is_broken_is_dialled_again_at_all_of_its_addresses(tmp_path, monkeypatch, scheme):
    monkeypatch.setenv(staged.FOLDER_VARIABLE, "")
    monkeypatch.setattr("hpcpool.processes.file_port._PAUSE_S", 0.0)
    monkeypatch.setattr("hpcpool.processes.file_port.client_context", lambda authority, key: StandInContext())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    dialled: list[list[str]] = []

    def connect(addresses, context, timeout_s):
        dialled.append(addresses)
        if len(dialled) < 3:
            raise Unreachable("nobody is there")
        return ours, addresses[0]

    monkeypatch.setattr("hpcpool.processes.file_port.connect", connect)
    ways = [f"{scheme}://there:1", f"{scheme}://there:2"]
    leave_word(str(tmp_path), Connection([], "fork"), ways, "host:1")
    with contextlib.closing(ours), contextlib.closing(theirs):
        if scheme == "tcp":
            with pytest.raises(ConnectionError, match="nobody is there"):
                read_word(str(tmp_path)).open()
            assert dialled == [ways]
        else:
            with contextlib.closing(read_word(str(tmp_path)).open()):
                assert dialled == [ways] * 3


class StandInContext:
    """Of TLS, where none is spoken."""

    def set_alpn_protocols(self, protocols: list[str]) -> None:
        assert protocols == [FILES_PROTOCOL]
