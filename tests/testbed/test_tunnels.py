"""Tunnels over a link that is cut without a word, and heals."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hpcpool.providers.ssh.standing import Standing
from hpcpool.providers.ssh.tunnel import ReverseTunnel, candidates
from tests.conftest import wait_until
from tests.providers.ssh.streams import echo, serving
from tests.testbed import sshd
from tests.testbed.machine import require
from tests.testbed.namespaces import Host, hosts

pytestmark = pytest.mark.testbed

PATIENCE_S = 60.0

#: Says what comes back from a port of the loopback address there.
ASK = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=60) as stream:
    stream.sendall(b"hello")
    print(stream.recv(5).decode())
"""


@pytest.fixture
def host() -> Iterator[Host]:
    with hosts(1) as (made,):
        yield made


@pytest.fixture
def server(host, tmp_path) -> Iterator[sshd.Server]:
    require("openssh-server", "openssh-client")
    key = sshd.make_key(tmp_path / "key")
    made = sshd.Server(tmp_path / "server", host.address, key, port=2222, prefix=host.command())
    made.folder.mkdir()
    made.start()
    yield made
    made.stop()


def answer_there(host: Host, port: int) -> str:
    done = subprocess.run(
        host.command(sys.executable, "-c", ASK, str(port)), capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def test_a_tunnel_over_a_link_that_was_cut_comes_back_when_it_heals(host, server):
    ports = candidates(3)
    with serving(echo) as port:
        make = functools.partial(ReverseTunnel, server.login(keepalive_s=3.0), ("127.0.0.1", port), ports=ports)
        with contextlib.closing(Standing("the tunnel", make)) as standing:
            tunnel = standing.current
            assert tunnel is not None
            assert tunnel.port == ports[0]
            assert answer_there(host, tunnel.port) == "hello"
            host.cut()
            assert wait_until(lambda: standing.current is None, PATIENCE_S)
            assert not tunnel.is_alive
            host.heal()
            again = standing.wait(PATIENCE_S)
            assert again is not None
            assert again.port in ports
            assert answer_there(host, again.port) == "hello"
