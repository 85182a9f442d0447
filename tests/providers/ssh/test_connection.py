from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hpcpool.errors import HostKeyError, SSHError
from hpcpool.providers.ssh.connection import connect, execute
from hpcpool.providers.ssh.known_hosts import fingerprint
from hpcpool.providers.ssh.login import SSHLogin
from tests.conftest import open_descriptors, wait_until
from tests.providers.ssh.streams import PATIENCE_S
from tests.testbed.sshd import Server, make_key

pytestmark = pytest.mark.testbed


def says_hello(login: SSHLogin) -> bool:
    """Whether a command runs on the machine of a login."""
    with contextlib.closing(connect(login)) as connection:
        channel = connection.open_session()
        channel.settimeout(PATIENCE_S)
        channel.exec_command("echo hello")
        return channel.makefile().read() == b"hello\n"


def shown_key(server: Server) -> str:
    printed = subprocess.run(
        ("ssh-keygen", "-lf", str(server.folder / "host_key.pub")), capture_output=True, text=True, check=True
    )
    return printed.stdout.split()[1]


@pytest.fixture
def agent(tmp_path, monkeypatch) -> Iterator[Path]:
    """An agent without keys, which is the one to ask."""
    sock = tmp_path / "agent"
    process = subprocess.Popen(("ssh-agent", "-D", "-a", str(sock)), stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
    assert wait_until(lambda: listens(sock), PATIENCE_S)
    yield sock
    process.terminate()
    process.wait()


def listens(sock: Path) -> bool:
    """Whether somebody does at this place: it is there a bit before that."""
    with socket.socket(socket.AF_UNIX) as stream:
        return stream.connect_ex(str(sock)) == 0


# Host keys


def test_a_host_whose_key_is_not_known_is_refused_with_its_fingerprint_and_what_to_do(server, tmp_path):
    unknown = tmp_path / "empty"
    unknown.touch()
    with pytest.raises(HostKeyError) as caught:
        connect(server.login(known_hosts=str(unknown)))
    message = str(caught.value)
    assert shown_key(server) in message
    assert f"ssh-keyscan -p {server.port} {server.address} >> {unknown}" in message
    assert unknown.read_text() == ""
    assert "Accepted" not in server.log


def test_what_the_message_says_makes_the_host_known(server, tmp_path):
    known = tmp_path / "known"
    command = ("ssh-keyscan", "-T", "60", "-p", str(server.port), server.address)
    scanned = subprocess.run(command, capture_output=True, check=True)
    known.write_bytes(scanned.stdout)
    assert says_hello(server.login(known_hosts=str(known)))


def test_a_host_whose_key_has_changed_is_refused_loudly(server, key_folder, tmp_path):
    known = tmp_path / "known"
    stranger = " ".join((key_folder / "stranger.pub").read_text().split()[:2])
    known.write_text(f"[{server.address}]:{server.port} {stranger}\n")
    with pytest.raises(HostKeyError, match="HAS CHANGED") as caught:
        connect(server.login(known_hosts=str(known)))
    assert f"{known}:1" in str(caught.value)
    assert f"ssh-keygen -R '[{server.address}]:{server.port}'" in str(caught.value)
    assert shown_key(server) in str(caught.value)


def test_a_host_with_several_keys_shows_the_one_that_is_known(new_server, key_folder, tmp_path):
    rsa = tmp_path / "rsa"
    subprocess.run(("ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(rsa)), check=True)
    server = new_server(f"HostKey {rsa}")
    known = tmp_path / "known"
    known.write_text(f"[{server.address}]:{server.port} {(tmp_path / 'rsa.pub').read_text()}")
    assert says_hello(server.login(known_hosts=str(known)))


# Logging in


def test_a_key_that_the_server_does_not_know_is_refused_by_name(server, key_folder):
    stranger = str(key_folder / "stranger")
    with pytest.raises(SSHError, match=f"does not let us log in: it refused {stranger}"):
        connect(server.login(identity=stranger))


def test_a_key_file_that_is_not_there_or_locked_is_named(server, key_folder):
    with pytest.raises(SSHError, match="nowhere is not there"):
        connect(server.login(identity="/nowhere"))
    with pytest.raises(SSHError, match="needs a passphrase.*ssh-add"):
        connect(server.login(identity=str(key_folder / "locked")))


def test_a_key_of_the_agent_is_used(server, agent, key_folder):
    subprocess.run(("ssh-add", "-q", str(key_folder / "user")), check=True)
    config = server.folder / "ssh_config"
    config.write_text("IdentityFile /nowhere\n")
    login = server.login(identity=None, config=str(config), use_agent=True)
    assert says_hello(login)


def test_a_locked_key_file_is_used_by_the_agent_that_holds_it(server, agent, key_folder, tmp_path):
    locked = key_folder / "locked"
    shutil.copy(f"{locked}.pub", server.folder / "authorized_keys")
    opened = tmp_path / "opened"
    shutil.copy(locked, opened)
    subprocess.run(("ssh-keygen", "-q", "-p", "-P", "secret", "-N", "", "-f", str(opened)), check=True)
    subprocess.run(("ssh-add", "-q", str(opened)), check=True)
    assert says_hello(server.login(identity=str(locked), use_agent=True))


def test_an_agent_with_too_many_keys_is_told(new_server, agent, tmp_path):
    server = new_server("MaxAuthTries 3")
    for number in range(5):
        subprocess.run(("ssh-add", "-q", str(make_key(tmp_path / f"key{number}"))), check=True)
    config = server.folder / "ssh_config"
    config.write_text("IdentityFile /nowhere\n")
    with pytest.raises(SSHError, match="hung up after .* keys .*IdentitiesOnly"):
        connect(server.login(identity=None, config=str(config), use_agent=True))


@pytest.mark.parametrize("setting", ["AuthenticationMethods password", "AuthenticationMethods publickey,password"])
def test_a_server_that_wants_a_password_is_refused(new_server, setting):
    server = new_server(setting, "PasswordAuthentication yes", "PermitRootLogin yes")
    with pytest.raises(SSHError, match="password.*hpcpool asks for no passwords"):
        connect(server.login())


def test_the_users_configuration_is_used(server, tmp_path):
    config = tmp_path / "config"
    config.write_text(
        f"Host cluster\n HostName {server.address}\n Port {server.port}\n IdentityFile {server.user_key}\n"
        f" UserKnownHostsFile {server.known_hosts()}\n"
    )
    assert says_hello(SSHLogin("cluster", config=str(config), use_agent=False))


# The way there


def test_a_host_behind_jump_hosts_is_reached_through_them(new_server):
    outer, inner, last = new_server(), new_server(), new_server()
    known = last.folder / "all_known"
    known.write_text("".join(server.known_hosts_line() for server in (outer, inner, last)))
    config = last.folder / "ssh_config"
    config.write_text(f"IdentityFile {last.user_key}\n")
    jump = f"{outer.address}:{outer.port},{inner.address}:{inner.port}"
    assert says_hello(last.login(jump=jump, known_hosts=str(known), config=str(config)))
    assert "Accepted" in outer.log
    assert f"Connection from {inner.address}" in last.log or "Accepted" in inner.log


def test_a_jump_host_that_cannot_reach_the_host_is_named(new_server):
    gate, last = new_server(), new_server()
    known = last.folder / "all_known"
    known.write_text(gate.known_hosts_line() + last.known_hosts_line())
    config = last.folder / "ssh_config"
    config.write_text(f"IdentityFile {last.user_key}\n")
    login = last.login(jump=f"{gate.address}:{gate.port}", known_hosts=str(known), config=str(config))
    last.stop()
    with pytest.raises(SSHError, match=f"{gate.address} port {gate.port} cannot connect to {last.address}"):
        connect(login)


def test_a_proxy_command_is_the_way_there_and_ends_with_the_connection(server, key_folder, tmp_path):
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while data := os.read(0, 65536): s.sendall(data)\n"
        "    s.shutdown(socket.SHUT_WR)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while data := s.recv(65536): os.write(1, data)\n"
    )
    config = tmp_path / "config"
    config.write_text(f"ProxyCommand {shutil.which('python3')} {relay} %h %p\n")
    before = psutil.Process().children()
    assert says_hello(server.login(config=str(config)))
    assert psutil.Process().children() == before


def test_a_host_that_is_down_or_not_known_is_told(server):
    login = server.login()
    server.stop()
    with pytest.raises(SSHError, match=f"cannot connect to {server.address} port {server.port}: Connection refused"):
        connect(login)
    with pytest.raises(SSHError, match=r"the host no-such-host\.invalid .* is not known here"):
        connect(server.login(destination="no-such-host.invalid"))


def test_a_server_that_says_nothing_is_given_up_in_time(key_folder):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        login = SSHLogin("127.0.0.1", port=port, config="none", use_agent=False, connect_timeout_s=1)
        began = time.monotonic()
        with pytest.raises(SSHError, match="no SSH connection to 127.0.0.1"):
            connect(login)
        assert time.monotonic() - began < 10


def test_a_server_that_drops_connections_while_it_is_busy_is_tried_again(server):
    """What `MaxStartups` does, which is random: the first two are hung up on, the third goes through."""
    drops = 2
    with socket.create_server((server.address, 0)) as front:

        def serve() -> None:
            for _ in range(drops):
                front.accept()[0].close()
            client = front.accept()[0]
            with client, socket.create_connection((server.address, server.port)) as back:
                pumps = [threading.Thread(target=pump, args=pair) for pair in ((client, back), (back, client))]
                for thread in pumps:
                    thread.start()
                for thread in pumps:
                    thread.join()

        server_thread = threading.Thread(target=serve)
        server_thread.start()
        known = server.folder / "front_known"
        port = front.getsockname()[1]
        known.write_text(server.known_hosts_line().replace(str(server.port), str(port)))
        assert says_hello(server.login(port=port, known_hosts=str(known), connect_timeout_s=60.0))
        server_thread.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def test_forty_connections_at_once_all_succeed(new_server):
    server = new_server("MaxStartups 6")  # four of ours, and two that it has not yet seen to be logged in
    login = server.login(connect_timeout_s=60.0)
    done: list[bool] = []
    threads = [threading.Thread(target=lambda: done.append(says_hello(login))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 40


def test_a_connection_that_is_gone_is_not_alive(server):
    with contextlib.closing(connect(server.login())) as connection:
        assert connection.is_alive
        server.cut_connections()
        assert wait_until(lambda: not connection.is_alive, PATIENCE_S)
        with pytest.raises(SSHError, match="was lost"):
            connection.open_session()


def test_a_connection_that_goes_silent_holds_nobody_longer_than_he_wants(server):
    with contextlib.closing(connect(server.login())) as connection:
        channel = connection.open_session()
        frozen = server.freeze_connections()
        began = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                execute(channel, "true", 0.5)
            assert time.monotonic() - began < 20
        finally:
            for process in frozen:
                process.resume()


def test_a_failed_attempt_leaves_no_descriptor(server, key_folder):
    with contextlib.suppress(SSHError):
        connect(server.login(identity=str(key_folder / "stranger")))
    assert wait_until(lambda: not any("paramiko" in type(t).__module__ for t in threading.enumerate()), PATIENCE_S)
    before = open_descriptors()
    with contextlib.suppress(SSHError):
        connect(server.login(identity=str(key_folder / "stranger")))
    assert wait_until(lambda: open_descriptors() <= before, PATIENCE_S)


def test_the_fingerprint_is_the_one_that_ssh_shows(server):
    import base64

    key = base64.b64decode((server.folder / "host_key.pub").read_text().split()[1])
    assert fingerprint(key) == shown_key(server)
