from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import threading

import psutil
import pytest

from hpcpool.errors import SSHError
from hpcpool.providers.ssh.connection import Connection, connect
from hpcpool.providers.ssh.gateway import Gateway, listening
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.ssh.tunnel import candidates
from tests.conftest import wait_until
from tests.providers.ssh.streams import PATIENCE_S, answer_of, echo, is_refused, serving
from tests.testbed.sshd import Server

#: From a Debian 12, shortened: port 8080 on all addresses, 6010 on loopback, 6010 also as a connection (state 01).
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:177A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0500000A:177A 0600000A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 3 1
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
   1: 00000000000000000000000001000000:177A 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
cat: /proc/net/tcp6: No such file or directory
"""


def addresses(*texts: str) -> frozenset:
    return frozenset(map(ipaddress.ip_address, texts))


def test_the_addresses_that_a_port_listens_on_are_read():
    assert listening(TCP, 8080) == addresses("0.0.0.0", "::")
    assert listening(TCP, 6010) == addresses("127.0.0.1", "::1")
    assert listening(TCP, 1) == listening("", 8080) == frozenset()


@pytest.mark.testbed
@pytest.mark.parametrize("gateway_ports", ["no", "clientspecified", "yes"])
def test_nodes_reach_a_port_here_through_the_login_node(new_server, gateway_ports):
    server = new_server(f"GatewayPorts {gateway_ports}")
    sent = random.Random(2).randbytes(4 << 20)
    ports = candidates(3)
    with serving(echo) as port, contextlib.closing(Gateway(server.login(), port, ports)) as gateway:
        assert gateway.hosts
        assert gateway.port == ports[0]
        # The nodes of this login node are 127.0.0.x, too: its loopback address alone is not theirs.
        assert answer_of("127.0.0.77", gateway.port, sent) == sent


@pytest.mark.testbed
@pytest.mark.parametrize("gateway_ports", ["no", "yes"])
def test_the_first_port_that_is_free_is_taken(new_server, gateway_ports):
    server = new_server(f"GatewayPorts {gateway_ports}")
    with serving(echo) as port, socket.create_server(("0.0.0.0", 0)) as taken:
        number = taken.getsockname()[1]
        ports = (number, *candidates(2))
        with contextlib.closing(Gateway(server.login(), port, ports)) as gateway:
            assert gateway.port == ports[1]
            assert answer_of("127.0.0.77", gateway.port, b"x") == b"x"
        with pytest.raises(SSHError, match=rf"(ports .* are in use .*|none of its ports is free): {number}"):
            Gateway(server.login(), port, (number,))


@pytest.mark.testbed
def test_the_relay_ends_with_the_gateway(new_server):
    server = new_server("GatewayPorts no")
    with serving(echo) as port:
        gateway = Gateway(server.login(), port, candidates(3))
        assert answer_of("127.0.0.77", gateway.port, b"x") == b"x"
        gateway.close()
        gateway.close()
        assert wait_until(lambda: is_refused("127.0.0.77", gateway.port), PATIENCE_S)


def end_of_relay(server: Server) -> None:
    (relay,) = filter(is_relay, server.processes())
    relay.kill()


def is_relay(process: psutil.Process) -> bool:
    try:
        return "sys.stdin.readline" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # another one, which has just ended
        return False


@pytest.mark.testbed
@pytest.mark.parametrize(
    ("gateway_ports", "end"),
    [("no", Server.cut_connections), ("yes", Server.cut_connections), ("no", end_of_relay)],
)
def test_whoever_waits_for_its_end_hears_of_it(new_server, gateway_ports, end):
    server = new_server(f"GatewayPorts {gateway_ports}")
    with contextlib.closing(Gateway(server.login(), 1, candidates(3))) as gateway:
        waiter = threading.Thread(target=gateway.wait_for_end)
        waiter.start()
        assert waiter.is_alive()
        end(server)
        waiter.join(PATIENCE_S)
        assert not waiter.is_alive()


@pytest.mark.testbed
@pytest.mark.parametrize("gateway_ports", ["no", "yes"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_connection_that_is_lost_while_it_is_made_is_said_to_be_lost(new_server, gateway_ports, number):
    server = new_server(f"GatewayPorts {gateway_ports}")

    def connect_and_lose(login: SSHLogin) -> Connection:
        """A connection that is lost as soon as the session of this number is open."""
        connection, left = connect(login), [number]
        open_session = connection.open_session

        def open_and_lose() -> object:
            session = open_session()
            left[0] -= 1
            if not left[0]:
                cut = server.connections()
                server.cut_connections()
                psutil.wait_procs(cut, PATIENCE_S)
            return session

        connection.open_session = open_and_lose  # type: ignore[method-assign]
        return connection

    with pytest.raises(SSHError, match="was lost"):
        Gateway(server.login(), 1, candidates(3), connect=connect_and_lose)


@pytest.mark.testbed
def test_where_nothing_helps_it_is_said_what_to_do(new_server, tmp_path):
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "python3").write_text("#!/bin/sh\necho no python here >&2\nexit 1\n")
    (broken / "python3").chmod(0o755)
    server = new_server("GatewayPorts no", f'ForceCommand PATH={broken}:$PATH sh -c "$SSH_ORIGINAL_COMMAND"')
    with pytest.raises(SSHError, match=r"GatewayPorts no.*no python here.*clientspecified"):
        Gateway(server.login(), 1, candidates(3))
