from __future__ import annotations

import contextlib
import queue
import random
import socket
import sys
import threading
import time

import pytest

from hpcpool.errors import SSHError
from hpcpool.providers.ssh import tunnel
from hpcpool.providers.ssh.tunnel import ReverseTunnel, candidates
from tests.conftest import open_descriptors, wait_until
from tests.providers.ssh.streams import (
    PATIENCE_S,
    answer_of,
    connect_to,
    deaf_port,
    echo,
    is_refused,
    send_and_end,
    serving,
    to_end,
)

pytestmark = pytest.mark.testbed

MIB = 1 << 20


@contextlib.contextmanager
def tunnel_to(server, handle, **options):
    """A tunnel to a server that handles each connection so; gives the tunnel."""
    with (
        serving(handle) as port,
        contextlib.closing(ReverseTunnel(server.login(), ("127.0.0.1", port), **options)) as made,
    ):
        yield made


def test_64_mib_come_back_through_the_tunnel_unchanged(server):
    sent = random.Random(1).randbytes(64 * MIB)
    with tunnel_to(server, echo) as tunnel:
        assert answer_of("127.0.0.1", tunnel.port, sent) == sent


def test_many_connections_share_one_tunnel_and_one_thread(server):
    def threads() -> int:
        return sum(thread.name.startswith("hpcpool-tunnel") for thread in threading.enumerate())

    with tunnel_to(server, echo) as tunnel:
        streams = [connect_to("127.0.0.1", tunnel.port) for _ in range(30)]
        for number, stream in enumerate(streams):
            stream.sendall(b"%02d" % number)
        for number, stream in enumerate(streams):
            assert stream.recv(2) == b"%02d" % number
        assert threads() == 1
        for stream in streams:
            stream.close()


def test_a_reader_that_stops_stops_its_writer_but_nobody_else_and_goes_on_later(server):
    go_on = threading.Event()
    size = 48 * MIB
    received: list[int] = []

    def read_later(stream: socket.socket) -> None:
        if stream.recv(1) == b"e":
            echo(stream)
            return
        assert go_on.wait(PATIENCE_S)
        received.append(len(to_end(stream)))

    with tunnel_to(server, read_later) as tunnel, connect_to("127.0.0.1", tunnel.port) as slow:
        slow.sendall(b"s")
        slow.setblocking(False)
        taken = fill(slow, size)
        assert taken < 24 * MIB  # the buffers on the way are full, and they are small
        with connect_to("127.0.0.1", tunnel.port) as other:
            other.sendall(b"e" + b"x" * 1000)
            other.shutdown(socket.SHUT_WR)
            assert len(to_end(other)) == 1000
        slow.settimeout(PATIENCE_S)
        go_on.set()
        send_and_end(slow, bytes(size - taken))
        assert slow.recv(1) == b""
    assert received == [size]


def fill(stream: socket.socket, most: int) -> int:
    """Write until nothing is taken for a while; how much was taken."""
    taken, chunk = 0, bytes(MIB)
    deadline = time.monotonic() + 1.0
    while taken < most and time.monotonic() < deadline:
        try:
            taken += stream.send(chunk[: most - taken])
            deadline = time.monotonic() + 1.0
        except BlockingIOError:
            threading.Event().wait(0.01)
    return taken


def test_a_writer_here_is_slowed_down_by_a_reader_there(server):
    size = 48 * MIB
    written: list[int] = []

    def write(stream: socket.socket) -> None:
        stream.setblocking(False)
        taken = fill(stream, size)
        written.append(taken)
        stream.settimeout(PATIENCE_S)
        send_and_end(stream, bytes(size - taken))

    with tunnel_to(server, write) as tunnel, connect_to("127.0.0.1", tunnel.port) as stream:
        assert wait_until(lambda: bool(written), PATIENCE_S)
        assert written[0] < 24 * MIB
        assert len(to_end(stream)) == size


def test_each_side_may_end_while_the_other_goes_on(server):
    def greet_after_the_end(stream: socket.socket) -> None:
        stream.sendall(to_end(stream)[::-1])

    with tunnel_to(server, greet_after_the_end) as tunnel:
        assert answer_of("127.0.0.1", tunnel.port, b"abc") == b"cba"


def test_a_target_that_is_not_there_closes_the_connection(server):
    with deaf_port() as port, contextlib.closing(ReverseTunnel(server.login(), ("127.0.0.1", port))) as tunnel:
        with contextlib.suppress(ConnectionResetError):  # if sshd has not read what was sent
            assert answer_of("127.0.0.1", tunnel.port, b"x") == b""
        assert tunnel.is_alive


def test_a_lost_connection_ends_what_goes_through_it_with_a_reset_here(server):
    ends: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen(stream: socket.socket) -> None:
        try:
            echo(stream)
            ends.put("in order")
        except OSError as error:
            ends.put(type(error).__name__)

    with tunnel_to(server, listen) as tunnel:
        assert answer_of("127.0.0.1", tunnel.port, b"x") == b"x"
        assert ends.get(timeout=PATIENCE_S) == "in order"
        with connect_to("127.0.0.1", tunnel.port) as stream:
            stream.sendall(b"x")
            assert stream.recv(1) == b"x"
            server.cut_connections()
            with contextlib.suppress(ConnectionResetError):
                assert stream.recv(1) == b""
        assert ends.get(timeout=PATIENCE_S) == "ConnectionResetError"
        tunnel.wait_for_end()
        assert not tunnel.is_alive


def test_closing_waits_for_no_other_side_that_is_silent(server):
    go_on = threading.Event()

    def write(stream: socket.socket) -> None:
        stream.sendall(b"x")
        assert go_on.wait(PATIENCE_S)
        stream.sendall(bytes(8 * MIB))

    with tunnel_to(server, write) as tunnel, contextlib.ExitStack() as streams:
        for _ in range(20):
            stream = streams.enter_context(connect_to("127.0.0.1", tunnel.port))
            assert stream.recv(1) == b"x"
        frozen = server.freeze_connections()
        try:
            go_on.set()
            # The channels take more than the connection does, so the thread of the tunnel comes to wait for the latter.
            assert wait_until(lambda: is_sending("hpcpool-tunnel"), PATIENCE_S)
            began = time.monotonic()
            tunnel.close()
            assert time.monotonic() - began < 10  # by itself it would end after 15 s
        finally:
            for process in frozen:
                process.resume()


def is_sending(name: str) -> bool:
    """Whether a thread waits until a connection takes what it sends."""
    (thread,) = (thread for thread in threading.enumerate() if thread.name.startswith(name))
    frame = sys._current_frames().get(thread.ident or 0)
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return "write_all" in names


def test_a_tunnel_can_move_to_another_port(server):
    first, second = candidates(2)
    with serving(echo) as taken, tunnel_to(server, echo, ports=(first,)) as tunnel:
        tunnel.move((taken, second))
        assert tunnel.port == second
        assert answer_of("127.0.0.1", second, b"x") == b"x"
        assert is_refused("127.0.0.1", first)
        with pytest.raises(SSHError, match="ports in use"):
            tunnel.move((taken,))


def test_closing_frees_the_port_and_every_descriptor(server):
    # The first tunnel loads what stays loaded.
    with tunnel_to(server, echo) as tunnel:
        answer_of("127.0.0.1", tunnel.port, b"x")
    before = len(open_descriptors())
    with tunnel_to(server, echo) as tunnel:
        answer_of("127.0.0.1", tunnel.port, b"x")
        stream = connect_to("127.0.0.1", tunnel.port)
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        tunnel.close()
        tunnel.close()
        with contextlib.suppress(ConnectionResetError):
            assert stream.recv(1) == b""
        stream.close()
    assert wait_until(lambda: is_refused("127.0.0.1", tunnel.port), PATIENCE_S)
    assert wait_until(lambda: len(open_descriptors()) <= before, PATIENCE_S)


def test_the_first_port_that_is_free_is_taken(server):
    with serving(echo) as taken, serving(echo) as target:
        (free,) = candidates(1)
        with contextlib.closing(ReverseTunnel(server.login(), ("127.0.0.1", target), ports=(taken, free))) as tunnel:
            assert tunnel.port == free
        with pytest.raises(SSHError, match=f"ports in use: {taken}"):
            ReverseTunnel(server.login(), ("127.0.0.1", target), ports=(taken,))


def test_a_server_that_forbids_tunnels_says_whom_to_ask(new_server):
    server = new_server("AllowTcpForwarding no")
    with pytest.raises(SSHError, match="AllowTcpForwarding.*Ask those who run it"):
        ReverseTunnel(server.login(), ("127.0.0.1", 1))


def test_a_tunnel_that_cannot_be_made_leaves_no_connection_and_no_thread(server, monkeypatch):
    def ours() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if each.name.startswith(("hpcpool-tunnel", "Thread-"))}

    def fail(*args: object) -> None:
        raise OSError(24, "Too many open files")

    before = ours()
    with pytest.raises(OSError, match="Too many open files"):
        ReverseTunnel(server.login(), ("127.0.0.1", 9), connect=fail)
    monkeypatch.setattr(tunnel, "Pump", fail)
    with pytest.raises(OSError, match="Too many open files"):
        ReverseTunnel(server.login(), ("127.0.0.1", 9))
    assert ours() <= before
