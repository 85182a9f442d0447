"""What the interchange answers about files, over a socket pair; and connections that end in the middle."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool.processes import file_desk
from hpcpool.processes.file_desk import FileDesk
from hpcpool.wire.file_transfer import (
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
    Request,
    SeeFile,
    SeeFolder,
    SeePlace,
)
from tests.live.processes import until

DATA = b"some data\n" * 300_000
DIGEST = hashlib.sha256(DATA).digest()


class Desk:
    """A desk, and the workers' ends of connections to it."""

    def __init__(self) -> None:
        self.desk = FileDesk()
        self.ends: list[socket.socket] = []

    def connect(self, block: str = "a-0", manager: str = "host:1") -> FileLine:
        line = self.connect_silently(block)
        line.say(Greeting(manager))
        return line

    def connect_silently(self, block: str = "a-0") -> FileLine:
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        self.ends.append(ours)
        self.desk.admit(theirs, block)
        return FileLine(ours)


@pytest.fixture
def desk(monkeypatch) -> Iterator[Desk]:
    monkeypatch.setattr(file_desk, "_IDLE_S", 30.0)  # longer than anybody has patience
    desk = Desk()
    yield desk
    desk.desk.close()
    for end in desk.ends:
        end.close()


@pytest.fixture
def line(desk) -> FileLine:
    return desk.connect()


def ask(line: FileLine, request: Request) -> object:
    line.say(request)
    return line.hear()


def on_the_way(folder: Path) -> list[str]:
    """What is being written in a folder and has no name yet, or not its own."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(descriptor))
    return [path for path in found if path.startswith(f"{folder}/")]


def state(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


def put(line: FileLine, path: Path, data: bytes, tmp_path: Path, digest: bytes | None = None) -> object:
    """Send a file as a worker does; return the last answer."""
    answer = ask(line, PutFile(str(path), len(data)))
    if not isinstance(answer, Ready):
        return answer
    (tmp_path / "of the node").write_bytes(data)
    with (tmp_path / "of the node").open("rb") as file:
        content = line.send_content(file.fileno())
    return ask(line, End(digest or content.digest))


# Looking


def test_the_state_of_a_file_is_told(line, tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    now = state(tmp_path / "x")
    assert ask(line, SeeFile(str(tmp_path / "x"))) == FileSeen(now)
    assert ask(line, SeeFile(str(tmp_path / "x"), now)) == FileSeen(now)
    assert ask(line, SeeFile(str(tmp_path / "none"))) == FileAbsent()
    assert ask(line, SeeFile(str(tmp_path / "x" / "none"))) == FileAbsent()


def test_a_file_that_is_not_as_it_was_is_told(line, tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    answer = ask(line, SeeFile(str(tmp_path / "x"), (7, 7)))
    assert isinstance(answer, Differs)
    assert f"it had 7 bytes, and has {len(DATA)}" in answer.text
    gone = ask(line, SeeFile(str(tmp_path / "none"), (7, 7)))
    assert isinstance(gone, Refusal)
    assert gone.errno == errno.ENOENT


def test_a_change_that_a_node_has_made_is_meant_and_one_after_it_is_not(line, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"before")
    before = state(path)
    assert put(line, path, DATA, tmp_path) == Done()
    assert ask(line, SeeFile(str(path), before)) == FileSeen(state(path))
    path.write_bytes(b"somebody else")
    assert isinstance(ask(line, SeeFile(str(path), before)), Differs)


def test_a_folder_is_not_a_file_and_a_file_no_folder(line, tmp_path):
    (tmp_path / "x").touch()
    assert ask(line, SeeFile(str(tmp_path))).errno == errno.EISDIR
    assert ask(line, SeeFile("/dev/null")).errno == errno.EINVAL
    assert ask(line, SeeFolder(str(tmp_path / "x"))).errno == errno.ENOENT
    assert ask(line, SeeFolder(str(tmp_path / "none"))).errno == errno.ENOENT


def test_the_probe_of_a_node_tells_whether_the_folder_is_the_same(line, tmp_path):
    (tmp_path / "probe").touch()
    assert ask(line, SeeFolder(str(tmp_path), "probe")) == FolderSeen(True)
    assert ask(line, SeeFolder(str(tmp_path), "other")) == FolderSeen(False)
    assert ask(line, SeeFolder(str(tmp_path))) == FolderSeen(False)


def test_whether_a_file_can_be_made_is_told_before_it_is(line, tmp_path, monkeypatch):
    (tmp_path / "y").touch()
    (tmp_path / "away").symlink_to(tmp_path / "none" / "y")
    os.mkfifo(tmp_path / "pipe")
    for name, expected in {
        "y": None,
        "new": None,
        "away": errno.ENOENT,
        "none/y": errno.ENOENT,
        "pipe": errno.EINVAL,
    }.items():
        answer = ask(line, SeePlace(str(tmp_path / name)))
        assert answer == Ready() if expected is None else answer.errno == expected, name
    assert ask(line, SeePlace(str(tmp_path))).errno == errno.EISDIR
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path / "y"))  # to root nothing is read-only
    assert f"{tmp_path}/y cannot be written on" in ask(line, SeePlace(str(tmp_path / "y"))).text
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path))
    assert f"no file can be made in {tmp_path} on" in ask(line, SeePlace(str(tmp_path / "new"))).text


# Reading


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def test_a_file_is_sent_with_its_hash_and_whether_it_is_a_program(line, tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    (tmp_path / "x").chmod(0o755)
    assert ask(line, GetFile(str(tmp_path / "x"), state(tmp_path / "x"))) == Ready(True)
    with (tmp_path / "y").open("wb") as file:
        assert line.receive_content(file.fileno()).digest == DIGEST
    assert line.hear() == End(DIGEST)
    assert (tmp_path / "y").read_bytes() == DATA


def test_a_file_in_another_state_is_not_sent(line, tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    assert isinstance(ask(line, GetFile(str(tmp_path / "x"), (7, 7))), Differs)
    assert ask(line, GetFile(str(tmp_path / "none"), (7, 7))).errno == errno.ENOENT
    os.mkfifo(tmp_path / "pipe")
    assert ask(line, GetFile(str(tmp_path / "pipe"), (0, 0))).errno == errno.EINVAL


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 10), overwrite], ids=["its size", "its content"])
def test_a_file_that_changes_while_it_is_sent_is_told_at_the_end(line, tmp_path, change):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(64 * 2**20)  # more than fits into the sockets: its end is read after the change
    os.utime(path, (0, 0))  # two changes at once may have one time
    assert ask(line, GetFile(str(path), state(path))) == Ready()
    change(path)
    with (tmp_path / "y").open("wb") as file:
        line.receive_content(file.fileno())
    assert isinstance(line.hear(), Differs)


# Writing


def test_a_file_appears_whole_with_the_usual_permissions(line, tmp_path):
    assert put(line, tmp_path / "y", DATA, tmp_path) == Done()
    assert (tmp_path / "y").read_bytes() == DATA
    (tmp_path / "usual").touch()
    assert (tmp_path / "y").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"y", "usual", "of the node"}


def test_a_program_stays_a_program(line, tmp_path):
    assert ask(line, PutFile(str(tmp_path / "y"), 0, True)) == Ready()
    with open(os.devnull, "rb") as nothing:
        content = line.send_content(nothing.fileno())
    assert ask(line, End(content.digest)) == Done()
    assert (tmp_path / "y").stat().st_mode & stat.S_IXUSR


def test_what_comes_with_another_hash_or_size_is_not_kept(line, tmp_path):
    (tmp_path / "y").write_bytes(b"before")
    assert isinstance(put(line, tmp_path / "y", DATA, tmp_path, digest=b"\0" * 32), Differs)
    assert ask(line, PutFile(str(tmp_path / "y"), 7)) == Ready()
    with open(os.devnull, "rb") as nothing:
        content = line.send_content(nothing.fileno())
    assert isinstance(ask(line, End(content.digest)), Differs)
    assert (tmp_path / "y").read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"y", "of the node"}


def test_what_has_no_place_is_refused_before_it_is_sent(line, tmp_path):
    assert put(line, tmp_path, DATA, tmp_path).errno == errno.EISDIR
    assert put(line, tmp_path / "none" / "y", DATA, tmp_path).errno == errno.ENOENT
    refusal = ask(line, PutFile(str(tmp_path / "y"), 2**60))
    assert refusal.errno == errno.ENOSPC
    assert f"No space left on device for its {2**60} bytes" in refusal.text


def test_what_is_no_file_and_what_must_not_be_written_is_not_replaced(line, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    assert put(line, tmp_path / "pipe", DATA, tmp_path).errno == errno.EINVAL
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "y").write_bytes(b"before")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # to root nothing is read-only
    assert put(line, tmp_path / "y", DATA, tmp_path).errno == errno.EACCES
    assert (tmp_path / "y").read_bytes() == b"before"


def test_a_worker_that_goes_in_the_middle_leaves_nothing(desk, line, tmp_path):
    assert ask(line, PutFile(str(tmp_path / "y"), len(DATA))) == Ready()
    assert on_the_way(tmp_path)
    desk.ends[0].close()
    until(lambda: not on_the_way(tmp_path) and not list(tmp_path.iterdir()))


# Connections


def test_a_block_that_ends_takes_its_connections_along_and_no_others(desk, tmp_path):
    ending, other = desk.connect("a-1"), desk.connect("a-2")
    assert ask(ending, PutFile(str(tmp_path / "y"), len(DATA))) == Ready()
    assert ask(other, SeeFile("/")) is not None
    desk.desk.end("a-1")
    until(lambda: not on_the_way(tmp_path) and not list(tmp_path.iterdir()))
    assert ending.hear() is None
    assert ask(other, SeeFile("/")) is not None


def test_a_manager_that_is_lost_takes_its_connections_along_and_gets_no_new_ones(desk, tmp_path):
    lost, other = desk.connect(manager="host:1"), desk.connect(manager="host:2")
    assert ask(lost, PutFile(str(tmp_path / "y"), len(DATA))) == Ready()
    assert ask(other, SeeFile("/")) is not None
    desk.desk.lost("a-0", "host:1")
    until(lambda: not on_the_way(tmp_path) and not list(tmp_path.iterdir()))
    assert lost.hear() is None
    assert ask(other, SeeFile("/")) is not None
    assert desk.connect(manager="host:1").hear() is None
    assert ask(desk.connect("a-1", manager="host:1"), SeeFile("/")) is not None, "of another block"


def test_who_finds_all_threads_busy_is_served_when_one_is_free(desk, monkeypatch):
    monkeypatch.setattr(file_desk, "_MOST_THREADS", 1)
    first, second = desk.connect(), desk.connect()
    assert ask(first, SeeFile("/")) is not None
    second.say(SeeFile("/"))
    first.close()
    assert second.hear() is not None


def test_where_no_thread_can_be_started_others_serve_and_without_others_the_call_is_told(desk, monkeypatch):
    served = desk.connect()
    assert ask(served, SeeFile("/")) is not None
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    waiting = desk.connect()
    waiting.say(SeeFile("/"))
    served.close()
    assert waiting.hear() is not None
    waiting.close()
    until(lambda: not desk.desk._threads)
    assert desk.connect_silently().hear() is None
    monkeypatch.setattr(threading.Thread, "start", start)
    assert ask(desk.connect(), SeeFile("/")) is not None


def no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_who_asks_no_more_is_in_nobodys_way(desk, monkeypatch):
    monkeypatch.setattr(file_desk, "_MOST_THREADS", 1)
    lines = [desk.connect() for _ in range(3)]
    for line in lines:
        line.say(SeeFile("/"))
    for line in lines:
        assert line.hear() is not None


def test_who_asks_no_more_makes_room_for_others(desk, monkeypatch):
    monkeypatch.setattr(file_desk, "_IDLE_S", 0.01)
    line = desk.connect()
    assert ask(line, SeeFile("/")) is not None
    assert line.hear() is None


@pytest.mark.parametrize("said", [Done(), b"\0\0\0\1\xc1"], ids=["an answer", "nonsense"])
def test_who_does_not_speak_as_agreed_is_left_and_others_are_served(desk, said):
    line = desk.connect()
    if isinstance(said, bytes):
        desk.ends[-1].sendall(said)
    else:
        line.say(said)
    assert line.hear() is None
    assert ask(desk.connect(), SeeFile("/")) is not None


def test_a_desk_that_is_closed_gives_everything_up(desk, line, tmp_path):
    assert ask(line, PutFile(str(tmp_path / "y"), len(DATA))) == Ready()
    assert on_the_way(tmp_path)
    desk.desk.close()
    assert not on_the_way(tmp_path)
    assert not list(tmp_path.iterdir())
    assert desk.ends[0].recv(1) == b""
