"""Real SSH servers for tests: OpenSSH's sshd on loopback addresses, with their own keys and settings. No test is here.

Debian has it in the package `openssh-server`. It needs no root: who is not root can only log in as himself, which is
what the tests do anyway.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from hpcpool.providers.ssh.login import SSHLogin
from tests.conftest import MARK, MARK_VALUE, wait_until
from tests.live.processes import kill
from tests.testbed.machine import free_ports

#: sshd wants to be started by its absolute path, and is not on every user's PATH.
PROGRAM = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
MISSING = "needs OpenSSH's sshd and ssh-keygen (Debian: apt-get install openssh-server)"
IS_THERE = PROGRAM is not None and shutil.which("ssh-keygen") is not None

START_S = 60.0
#: sshd drops privileges into this folder when root starts it.
EMPTY_FOLDER = Path("/run/sshd")


def make_key(path: Path, passphrase: str = "") -> Path:
    command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", path.name, "-f", str(path))
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


@dataclass
class Server:
    """One sshd. Its sessions have a home directory of their own, and the mark of this test run."""

    folder: Path
    address: str
    user_key: Path
    settings: tuple[str, ...] = ()
    port: int = 0
    #: PYTHONPATH of its sessions; empty: they find only what their Python has.
    python_path: str = ""
    #: Stands before the command that starts it, to start it somewhere else.
    prefix: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self) -> None:
        if not (self.folder / "host_key").exists():
            self.home.mkdir(parents=True)
            make_key(self.folder / "host_key")
            shutil.copy(f"{self.user_key}.pub", self.folder / "authorized_keys")
        if os.getuid() == 0:
            EMPTY_FOLDER.mkdir(mode=0o755, exist_ok=True)
        self.port = self.port or free_ports(1, self.address)[0]
        config = self.folder / "config"
        config.write_text("\n".join([*self.settings, *self._usual_settings(), ""]))
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen((*self.prefix, str(PROGRAM), "-D", "-e", "-f", str(config)), stderr=log)
        assert wait_until(self._answers, START_S), self.log

    def _usual_settings(self) -> tuple[str, ...]:
        """Of two values sshd takes the first, so what a test sets stands before these."""
        return (
            f"ListenAddress {self.address}:{self.port}",
            f"HostKey {self.folder}/host_key",
            f"AuthorizedKeysFile {self.folder}/authorized_keys",
            f"SetEnv HOME={self.home} {MARK}={MARK_VALUE} PYTHONPATH={self.python_path}",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "Subsystem sftp internal-sftp",
            "LogLevel VERBOSE",
        )

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.address, self.port), timeout=START_S) as stream:
                return stream.recv(4) == b"SSH-"
        except OSError:
            return False

    def stop(self) -> None:
        """End it and all of its connections."""
        if self._process is not None:
            # It takes nobody in any more before its connections are counted: who is cut off comes back at once.
            self._process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            connections = self.connections()
            self._process.kill()
            self._process.wait()
            for connection in connections:
                kill(connection)
            self._process = None

    def restart(self, *, python_path: str) -> None:
        """Start it again with another PYTHONPATH."""
        self.stop()
        self.python_path = python_path
        self.start()

    def processes(self) -> list[psutil.Process]:
        """Those that serve connections, and what runs in their sessions."""
        if self._process is None:
            return []
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def connections(self) -> list[psutil.Process]:
        """The processes that serve connections: not what runs in their sessions."""
        return [process for process in self.processes() if _name(process).startswith("sshd")]

    def cut_connections(self) -> None:
        """Kill the processes that serve the connections, as if they had crashed."""
        for connection in self.connections():
            kill(connection)

    def freeze_connections(self) -> list[psutil.Process]:
        """Stop the processes that serve the connections: the other side sees silence, as in a cut network."""
        frozen = []
        for process in self.connections():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
                frozen.append(process)
        return frozen

    def known_hosts_line(self) -> str:
        key_type, key, *_ = (self.folder / "host_key.pub").read_text().split()
        return f"[{self.address}]:{self.port} {key_type} {key}\n"

    def known_hosts(self) -> str:
        path = self.folder / "known_hosts"
        if not path.exists():  # else somebody may be reading it
            path.write_text(self.known_hosts_line())
        return str(path)

    def login(self, **changes: object) -> SSHLogin:
        options = {
            "destination": f"{getpass.getuser()}@{self.address}",
            "port": self.port,
            "identity": str(self.user_key),
            "config": "none",
            "known_hosts": self.known_hosts(),
            "use_agent": False,
            "connect_timeout_s": 10.0,
        }
        return SSHLogin(**{**options, **changes})  # type: ignore[arg-type]


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
