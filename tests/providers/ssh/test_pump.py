from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from hpcpool.providers.ssh.pump import Pump
from tests.conftest import wait_until
from tests.providers.ssh.streams import PATIENCE_S, deaf_port, serving, to_end

MIB = 1 << 20


class Transport:
    """The part of paramiko's transport that a pump looks at."""

    def __init__(self) -> None:
        self.active = True
        #: Somebody has looked.
        self.seen = threading.Event()

    def is_active(self) -> bool:
        active = self.active
        self.seen.set()
        return active


class Channel:
    """A channel of paramiko's as a pump sees it: with a descriptor that is readable when there is something to see."""

    def __init__(self, transport: Transport) -> None:
        self.lock = threading.Lock()
        self.out_buffer_cv = threading.Condition(self.lock)
        self.eof_received = self.closed = self.eof_sent = False
        #: The connection is lost by the next attempt to send, just after this has come.
        self.last_words = b""
        #: What the pump has sent.
        self.sent = bytearray()
        self.transport = transport
        self._received = bytearray()
        self._fd, self._notify = os.pipe2(os.O_NONBLOCK)

    # What happens to it

    def leave(self, data: bytes) -> None:
        """Bring data, and tell nobody yet."""
        with self.lock:
            self._received += data

    def bring(self, data: bytes) -> None:
        self.leave(data)
        os.write(self._notify, b"\0")

    def bring_eof(self) -> None:
        with self.lock:
            self.eof_received = True
            os.write(self._notify, b"\0")

    def close(self) -> None:
        """Also by a message of the other side, which may send no EOF before."""
        with self.lock:
            self.closed = True
            self.out_buffer_cv.notify_all()
            os.write(self._notify, b"\0")

    def lose_connection(self) -> None:
        """As paramiko does it: the channels hear of it before anybody can know why."""
        self.close()
        self.transport.active = False

    def release(self) -> None:
        os.close(self._fd)
        os.close(self._notify)

    # What the pump does with it

    def get_transport(self) -> Transport:
        return self.transport

    def settimeout(self, timeout_s: float) -> None:
        assert timeout_s == 0.0

    def fileno(self) -> int:
        return self._fd

    def recv(self, size: int) -> bytes:
        with self.lock:
            data = bytes(self._received[:size])
            del self._received[:size]
            is_over = self.eof_received or self.closed
            if not self._received and not is_over and data:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._fd, 4096)
        if not data and not is_over:
            raise TimeoutError
        return data

    def send_ready(self) -> bool:
        return True

    def send(self, data: memoryview) -> int:
        if self.last_words:
            self.leave(self.last_words)
            self.lose_connection()
        if self.closed:
            raise OSError("Socket is closed")
        self.sent += data
        return len(data)

    def shutdown_write(self) -> None:
        self.eof_sent = True


@pytest.fixture(autouse=True)
def _lasting_doubt(monkeypatch):
    """However late it becomes known that a connection is lost, until then it is not believed to live."""
    monkeypatch.setattr("hpcpool.providers.ssh.pump._DOUBT_S", 2 * PATIENCE_S)


@contextlib.contextmanager
def pumped() -> Iterator[tuple[Pump, Channel, socket.socket]]:
    """A pump with one channel, and our end of the connection that it has made for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = Channel(Transport())
        pump = Pump(listener.getsockname(), "hpcpool-tunnel-of-a-test")
        try:
            pump.add(channel)  # type: ignore[arg-type]  # a fake
            stream = listener.accept()[0]
            stream.settimeout(PATIENCE_S)
            with stream:
                yield pump, channel, stream
        finally:
            pump.close()
            channel.release()


def test_bytes_go_both_ways():
    with pumped() as (_, channel, stream):
        channel.bring(b"to here")
        assert stream.recv(100) == b"to here"
        stream.sendall(b"to there")
        assert wait_until(lambda: channel.sent == b"to there", PATIENCE_S)


def test_an_end_in_order_is_an_end_here():
    with pumped() as (_, channel, stream):
        channel.bring(b"last words")
        channel.bring_eof()
        channel.close()
        assert to_end(stream) == b"last words"


def test_a_side_that_has_ended_in_order_stays_so_when_the_connection_is_lost_later():
    with pumped() as (_, channel, stream):
        channel.bring(b"last words")
        channel.bring_eof()
        channel.lose_connection()
        assert to_end(stream) == b"last words"


def test_a_channel_that_is_closed_without_an_eof_is_an_end_in_order_while_the_connection_lives(monkeypatch):
    monkeypatch.setattr("hpcpool.providers.ssh.pump._DOUBT_S", 0.1)
    with pumped() as (_, channel, stream):
        channel.bring(b"last words")
        channel.close()
        assert to_end(stream) == b"last words"


def test_a_lost_connection_is_a_reset_here_after_all_that_has_come():
    with pumped() as (_, channel, stream):
        channel.bring(b"last words")
        channel.lose_connection()
        assert stream.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            stream.recv(100)


def test_a_connection_that_was_lost_before_the_pump_has_looked_is_a_reset_too():
    with pumped() as (_, channel, stream):
        channel.transport.active = False
        channel.close()
        with pytest.raises(ConnectionResetError):
            stream.recv(100)


def test_a_channel_that_is_closed_before_its_connection_is_known_to_be_lost_is_a_reset_too():
    with pumped() as (_, channel, stream):
        channel.close()
        assert channel.transport.seen.wait(PATIENCE_S)
        channel.transport.active = False
        with pytest.raises(ConnectionResetError):
            stream.recv(100)


def received_until_reset(stream: socket.socket) -> int:
    received = 0
    with pytest.raises(ConnectionResetError):
        while data := stream.recv(MIB):
            received += len(data)
    return received


#: Far more than the buffers of a connection hold. At a reset the kernel forgets what the sender's holds.
MUCH = 32 * MIB


def test_a_reset_waits_for_a_reader_who_is_slow():
    with pumped() as (_, channel, stream):
        channel.bring(bytes(MUCH))
        channel.lose_connection()
        assert received_until_reset(stream) > MUCH / 2


def test_a_connection_that_breaks_while_we_send_still_brings_what_has_come():
    with pumped() as (_, channel, stream):
        channel.last_words = bytes(MUCH)
        stream.sendall(b"x")
        assert received_until_reset(stream) > MUCH / 2


def test_closing_the_pump_is_a_cut_and_no_end():
    with pumped() as (pump, channel, stream):
        channel.bring(b"x")
        assert stream.recv(1) == b"x"
        pump.close()
        assert channel.closed
        with pytest.raises(ConnectionResetError):
            stream.recv(1)


def test_closing_the_pump_passes_on_what_a_lost_connection_has_brought():
    with pumped() as (pump, channel, stream):
        channel.leave(b"last words")
        channel.closed = True
        channel.transport.active = False
        pump.close()
        assert stream.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            stream.recv(1)


def test_a_reset_of_ours_closes_the_channel():
    with pumped() as (_, channel, stream):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.close()
        assert wait_until(lambda: channel.closed, PATIENCE_S)


def test_one_channel_that_is_lost_does_not_touch_another():
    heard: queue.Queue[bytes] = queue.Queue()

    def listen(stream: socket.socket) -> None:
        while data := stream.recv(100):
            heard.put(data)

    with serving(listen) as port:
        lost, other = Channel(Transport()), Channel(Transport())
        pump = Pump(("127.0.0.1", port), "hpcpool-tunnel-of-a-test")
        try:
            for channel in (lost, other):
                pump.add(channel)  # type: ignore[arg-type]  # a fake
                channel.bring(b"up")
                assert heard.get(timeout=PATIENCE_S) == b"up"
            lost.close()  # whether it was lost or closed is not known yet
            other.bring(b"still up")
            assert heard.get(timeout=PATIENCE_S) == b"still up"
            other.bring_eof()
        finally:
            pump.close()
            lost.release()
            other.release()


def test_a_channel_is_closed_if_nobody_listens():
    channel = Channel(Transport())
    with deaf_port() as port:
        pump = Pump(("127.0.0.1", port), "hpcpool-tunnel-of-a-test")
        pump.add(channel)  # type: ignore[arg-type]  # a fake
        assert wait_until(lambda: channel.closed, PATIENCE_S)
        pump.close()
    channel.release()
