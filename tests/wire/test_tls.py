from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import struct
import threading

import pytest

from hpcpool.processes.keys import RunKeys
from hpcpool.wire.stream import Stream
from hpcpool.wire.tls import TlsEnd, client_context, server_context


@pytest.fixture(scope="module")
def keys() -> RunKeys:
    return RunKeys()


def connected(
    server: ssl.SSLContext, client: ssl.SSLContext, pair: tuple[socket.socket, socket.socket] | None = None
) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Two ends after the handshake; what went wrong with it is raised by the side that noticed."""
    theirs, ours = pair or socket.socketpair()
    result: list[ssl.SSLSocket | OSError] = []

    def accept() -> None:
        try:
            result.append(server.wrap_socket(theirs, server_side=True))
        except OSError as error:
            theirs.close()
            result.append(error)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        end = client.wrap_socket(ours)
    except OSError:
        ours.close()
        raise
    finally:
        thread.join()
    if isinstance(result[0], OSError):
        end.close()
        raise result[0]
    return result[0], end


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        return listening.accept()[0], ours


@pytest.fixture
def streams(keys):
    server, client = connected(keys.context(), client_context(keys.authority, keys.issue("a-0")), tcp_pair())
    pair = Stream(TlsEnd(server)), Stream(TlsEnd(client))
    yield pair
    for stream in pair:
        stream.close()


def test_messages_of_any_size_cross_in_both_directions(streams):
    random.seed(3)
    sent = []
    for size in [0, 1, 100, 16_384, 16_385, 70_000, 1_000_000, 5, 0, 3_000_001]:
        frames = [os.urandom(random.randrange(200_000)) for _ in range(random.randrange(4))]
        sent.append((os.urandom(size), frames))
    for sender, receiver in (streams, streams[::-1]):
        for header, frames in sent:
            sender.send(header, frames)
        received: list[tuple[bytes, list[bytes]]] = []
        while len(received) < len(sent):
            sender.flush()
            received += receiver.receive()
        assert received == sent
        assert not sender.wants_to_write


def test_nothing_is_left_behind_that_a_poll_would_not_show(streams):
    """Many small messages are more than one record: each read must leave the rest where the system sees it."""
    sender, receiver = streams
    for n in range(3000):
        sender.send(b"%d" % n * 50)
    received: list[object] = []
    with socket.socket(fileno=os.dup(receiver.fileno())) as seen:
        seen.settimeout(10)
        while len(received) < 3000:
            sender.flush()
            received += receiver.receive()


def test_the_end_of_a_peer_is_seen(streams):
    sender, receiver = streams
    sender.send(b"last words")
    sender.close()
    received: list[tuple[bytes, list[bytes]]] = []
    while receiver.is_open:
        received += receiver.receive()
    assert received == [(b"last words", [])]
    assert receiver.trouble == ""


@pytest.mark.parametrize("is_written_first", [False, True])
def test_a_reset_is_told_from_an_end(streams, is_written_first):
    sender, receiver = streams
    sender.send(b"last words")
    sender._socket._end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sender.close()
    if is_written_first:
        receiver.send(b"to nobody")
    while receiver.is_open:
        receiver.receive()
    assert receiver.trouble == "Connection reset by peer"


def test_who_has_no_certificate_is_not_let_in(keys):
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        connected(keys.context(), stranger)


def test_the_certificate_of_another_run_is_refused_by_either_side(keys):
    other = RunKeys()
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        connected(keys.context(), client_context(keys.authority, other.issue("a-0")))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        connected(other.context(), client_context(keys.authority, keys.issue("a-0")))


def test_nobody_with_a_blocks_key_can_pass_for_the_interchange_unnoticed_by_its_own_block(keys):
    """Every key of the run is signed by its authority: a manager must not be taken for the interchange."""
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED|unsuitable|purpose"):
        connected(
            server_context(keys.authority, keys.issue("evil-0")), client_context(keys.authority, keys.issue("a-0"))
        )


def test_older_protocols_are_refused(keys):
    old = client_context(keys.authority, keys.issue("a-0"))
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        connected(keys.context(), old)


def test_a_key_leads_to_its_block_until_it_is_revoked(keys):
    server, client = connected(keys.context(), client_context(keys.authority, keys.issue("pool-7")))
    with contextlib.closing(server), contextlib.closing(client):
        assert keys.block_of(server) == "pool-7"
        keys.revoke("pool-8")
        assert keys.block_of(server) == "pool-7"
        keys.revoke("pool-7")
        assert keys.block_of(server) is None
