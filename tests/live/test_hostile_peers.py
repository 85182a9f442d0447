"""Whoever connects to the managers' socket and does not speak as agreed is dropped; the pool goes on."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

import hpcpool
from hpcpool import Config
from hpcpool.processes.connection import Connection, write_connection
from hpcpool.wire.messages import (
    Broken,
    Capacity,
    Define,
    Heartbeat,
    Hello,
    Outcome,
    Refused,
    Register,
    Returned,
    Run,
    Started,
    Status,
    Welcome,
    Withdrawn,
    encode,
    from_manager,
    to_manager,
)
from hpcpool.wire.setup import local_setup
from hpcpool.wire.stream import Stream
from hpcpool.wire.versions import hello
from tests.live import calls
from tests.live.processes import PATIENCE_S, Pool, executor, until

pytestmark = [pytest.mark.live, pytest.mark.once]

IMPATIENT = Config(heartbeat_period_s=0.1, heartbeat_timeout_s=0.8)
#: Who trickles says something twenty times a second, if the machine lets it: a delay must not be longer than this.
TRICKLED = {"heartbeat_period_s": 1.0, "heartbeat_timeout_s": 3.0}
TRICKLE_S = 4.5


@pytest.fixture(scope="module")
def pool():
    with executor(2) as pool:
        yield pool


class Peer:
    """A connection to the managers' socket of a pool."""

    def __init__(self, pool) -> None:
        self.log = Pool.of(pool).directory / "interchange.log"
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(self.log.with_name("managers.sock")))
        self.socket.settimeout(PATIENCE_S)

    def send(self, *messages: object, frames: tuple[bytes, ...] = ()) -> None:
        Stream(self.socket).send(encode(messages), frames)
        self.socket.settimeout(PATIENCE_S)

    def is_dropped(self) -> bool:
        """Read to the end of the connection: it is an error if that does not come."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()


@pytest.fixture
def peer(pool, tmp_path):
    """A peer while a call runs; the call and the pool do not notice anything of it."""
    running = pool.submit(calls.wait_for, tmp_path / "gate", tmp_path / "runs")
    until((tmp_path / "runs").exists)
    with Peer(pool) as peer:
        yield peer
    assert [pool.submit(pow, 2, n).result(PATIENCE_S) for n in range(5)] == [2**n for n in range(5)]
    (tmp_path / "gate").touch()
    assert running.result(PATIENCE_S) == int((tmp_path / "runs").read_text())


def framed(header: bytes, *frames: bytes) -> bytes:
    sizes = b"".join(struct.pack("!Q", len(frame)) for frame in frames)
    return struct.pack("!QI", len(header), len(frames)) + sizes + header + b"".join(frames)


JUNK = {
    "no MessagePack": framed(b"\xc1\xc1\xc1"),
    "nothing": framed(b""),
    "not a batch": framed(msgspec.msgpack.encode("hello")),
    "an unknown tag": framed(msgspec.msgpack.encode([[999, 1, 2]])),
    "no tag": framed(msgspec.msgpack.encode([[]])),
    "wrong types": framed(msgspec.msgpack.encode([[10, "one", 2, 3, 4]])),
    "a message for the client": framed(msgspec.msgpack.encode([[26, "warned"]])),
    "frames that nobody names": framed(encode([hello()]), b"more", b"and more"),
    "frames that are not there": framed(encode([Outcome(1, Status.OK, frames=3)])),
    "a negative number of frames": framed(encode([Outcome(1, Status.OK, frames=-1)])),
    "an endless frame": struct.pack("!QIQ", 0, 1, 2**64 - 1),
    "very many endless frames": struct.pack("!QI", 0, 1000) + struct.pack("!Q", 2**62) * 1000,
    "deep nesting": framed(b"\x91" * 100_000),
    "a number beyond all": framed(msgspec.msgpack.encode([[20, 2**64 - 1, 2**64 - 1]])),
}


@pytest.mark.parametrize("data", JUNK.values(), ids=JUNK.keys())
def test_junk_drops_its_sender(data, peer):
    peer.socket.sendall(data)
    assert peer.is_dropped()


@pytest.mark.parametrize("seed", range(3))
def test_noise_drops_its_sender_or_leaves_it_waiting(seed, pool):
    dice = random.Random(seed)
    for _ in range(20):
        with Peer(pool) as peer:
            peer.socket.sendall(dice.randbytes(dice.randint(1, 2000)))
    assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8


def test_junk_after_a_greeting_drops_the_peer(peer):
    peer.send(hello(), Register("default-77", "elsewhere", 1, 1))
    peer.socket.sendall(JUNK["an unknown tag"])
    assert peer.is_dropped()
    assert "dropped" in peer.log.read_text()


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        ({"protocol": 999}, "hpcpool protocol differs"),
        ({"python": "2.7.18"}, "Python differs"),
        ({"cloudpickle": "0.1"}, "cloudpickle differs"),
    ],
)
def test_another_version_is_refused_in_words_that_name_both_sides(difference, words, peer):
    theirs = Hello(**{**msgspec.structs.asdict(hello()), "host": "node77", **difference})
    peer.send(theirs, Register("default-77", "node77", 1, 1))
    stream = Stream(peer.socket)
    messages: list = []
    until(lambda: messages.extend(stream.receive()) or not stream.is_open)
    batch = [message for header, _ in messages for message in to_manager.decode(header)]
    assert [type(message) for message in batch] == [Refused]
    assert words in batch[0].reason
    assert "node77" in batch[0].reason
    assert socket.gethostname() in batch[0].reason


SPEECHES = {
    "without a greeting": [Heartbeat()],
    "registering without a greeting": [Register("default-0", "x", 1, 1)],
    "greeting twice": [hello(), hello()],
    "offering without registering": [hello(), Capacity(4, 4)],
    "offering less than nothing": [hello(), Register("default-77", "x", 1, 1), Capacity(-3, -3)],
    "offering nothing": [hello(), Register("default-77", "x", 1, 1), Capacity(0, 0)],
}


@pytest.mark.parametrize("speech", SPEECHES.values(), ids=SPEECHES.keys())
def test_a_peer_that_does_not_keep_the_order_is_dropped(speech, peer):
    peer.send(*speech)
    assert peer.is_dropped()


def test_a_peer_cannot_touch_the_tasks_of_another(peer):
    tasks = list(range(1, 100))
    peer.send(
        hello(),
        Register("default-77", "x", 1, 1),
        *(Outcome(task, Status.OK, b"junk") for task in tasks),
        *(Outcome(task, Status.CRASHED) for task in tasks),
        Returned(tasks),
        Withdrawn(tasks),
        Started([Run(task, 1, 0.0) for task in tasks]),
        Heartbeat(),
    )
    # The heartbeat is answered when all of that has been read. The fixture looks at the call that runs meanwhile.
    stream = Stream(peer.socket)
    heard: list = []
    until(lambda: heard.extend(stream.receive()) or len(heard) >= 2 or not stream.is_open)
    assert stream.is_open
    assert Heartbeat() in [message for header, _ in heard for message in to_manager.decode(header)]


def test_a_peer_that_says_half_a_message_and_stays(peer):
    peer.socket.sendall(framed(encode([hello()]))[:20])
    assert peer.socket.fileno() >= 0  # what follows happens while it stays: see the fixture


def test_many_peers_that_say_nothing(pool):
    peers = [Peer(pool) for _ in range(50)]
    assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8
    for peer in peers:
        peer.socket.close()


def test_the_socket_is_for_this_user_only(pool):
    directory = Pool.of(pool).directory
    assert directory.stat().st_mode & 0o077 == 0
    for name in ("connection.json", "config.json"):
        assert (directory / name).stat().st_uid == os.getuid()


class FalseInterchange:
    """Starts a real manager and is its interchange."""

    def __init__(self, folder: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "managers.sock"))
        self._listener.listen()
        self._listener.settimeout(PATIENCE_S)
        connection_file = folder / "connection.json"
        write_connection(str(connection_file), Connection([str(folder / "managers.sock")], "fork", str(folder)))
        start = Path(hpcpool.__file__).with_name("processes") / "start.py"
        command = [sys.executable, "-P", str(start), "manager", str(connection_file), "default-0", "-1", "-1"]
        self.manager = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.socket, _ = self._listener.accept()
        self.stream = Stream(self.socket)

    def hear(self) -> list:
        messages: list = []
        until(lambda: messages.extend(self.stream.receive()) or messages or not self.stream.is_open)
        return [message for header, _ in messages for message in from_manager.decode(header)]

    def __enter__(self) -> FalseInterchange:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()
        self._listener.close()
        self.manager.kill()
        self.manager.communicate()


WELCOME = Welcome(2, "fork", 0, local_setup(None, None, ()), 0.1, 2 * PATIENCE_S)


@pytest.mark.parametrize("first", [[], [WELCOME]], ids=["at once", "after its welcome"])
@pytest.mark.parametrize(
    "data", [JUNK["an unknown tag"], JUNK["not a batch"], framed(encode([Broken("no order")]))], ids=range(3)
)
def test_a_manager_that_cannot_read_its_interchange_leaves_with_its_workers(first, data, tmp_path):
    with FalseInterchange(tmp_path) as interchange:
        assert [type(message) for message in interchange.hear()] == [Hello, Register]
        if first:
            interchange.stream.send(encode(first))
            until(lambda: Capacity(2, 2) in interchange.hear())
        interchange.socket.sendall(data)
        _, err = interchange.manager.communicate(timeout=PATIENCE_S)
        assert b"malformed message" in err


def test_a_manager_that_is_refused_says_why_and_leaves(tmp_path):
    with FalseInterchange(tmp_path) as interchange:
        interchange.hear()
        interchange.stream.send(encode([Refused("Python differs: 3.11 here, 3.12 there")]))
        _, err = interchange.manager.communicate(timeout=PATIENCE_S)
        assert b"Python differs: 3.11 here, 3.12 there" in err


def trickle(send, message: bytes) -> bytes:
    """Send the first half of a message in small pieces, for longer than a timeout; return what is left of it."""
    begin, position = time.monotonic(), 0
    while time.monotonic() < begin + TRICKLE_S:
        send(message[position : position + 1])
        position += 1
        time.sleep(0.05)
    return message[position:]


def test_a_peer_whose_message_takes_longer_than_the_timeout_is_not_taken_for_dead():
    with executor(Config(**TRICKLED)) as pool, Peer(pool) as peer:
        peer.send(hello(), Register("default-77", "x", 1, 1))
        rest = trickle(peer.socket.sendall, framed(encode([Outcome(1, Status.OK, frames=1)]), bytes(1000)))
        peer.socket.sendall(rest + framed(encode([Heartbeat()])))
        stream = Stream(peer.socket)
        heard: list = []
        until(lambda: heard.extend(stream.receive()) or len(heard) >= 2 or not stream.is_open)
        assert Heartbeat() in [message for header, _ in heard for message in to_manager.decode(header)]


def test_a_peer_that_never_says_a_word_is_dropped():
    with executor(IMPATIENT) as pool, Peer(pool) as peer:
        assert peer.is_dropped()


def test_a_manager_does_not_leave_while_a_message_takes_longer_than_the_timeout(tmp_path):
    with FalseInterchange(tmp_path) as interchange:
        interchange.hear()
        interchange.stream.send(encode([msgspec.structs.replace(WELCOME, **TRICKLED)]))
        message = framed(encode([Define(b"key", bytes(1000))]))
        rest = trickle(interchange.socket.sendall, message)
        interchange.socket.sendall(rest + framed(encode([Refused("enough")])))
        _, err = interchange.manager.communicate(timeout=PATIENCE_S)
        assert b"interchange lost" not in err
        assert b"enough" in err


def test_a_manager_whose_interchange_is_silent_leaves(tmp_path):
    with FalseInterchange(tmp_path) as interchange:
        interchange.hear()
        interchange.stream.send(encode([msgspec.structs.replace(WELCOME, heartbeat_timeout_s=1.0)]))
        # Heartbeats come, none is answered.
        until(lambda: Heartbeat() in interchange.hear())
        _, err = interchange.manager.communicate(timeout=PATIENCE_S)
        assert b"interchange lost" in err


def test_a_manager_whose_fork_server_dies_before_its_welcome_leaves(tmp_path):
    with FalseInterchange(tmp_path) as interchange:
        interchange.hear()
        manager = psutil.Process(interchange.manager.pid)
        until(manager.children)
        manager.suspend()
        for child in manager.children():
            child.kill()
            until(lambda child=child: child.status() == psutil.STATUS_ZOMBIE)
        # The manager now finds the end of its fork server and then its welcome, in one look; nothing else will wake it.
        calm = msgspec.structs.replace(WELCOME, heartbeat_period_s=1e6, heartbeat_timeout_s=1e6)
        interchange.stream.send(encode([calm]))
        manager.resume()
        _, err = interchange.manager.communicate(timeout=PATIENCE_S)
        assert b"fork server gone" in err
