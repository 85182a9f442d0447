"""What a batch system needs of the machine: its packages, free ports, and daemons that end. No test is here."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

T = TypeVar("T")

#: Above what any of it takes, and below the time limit of a test. A Slurm looks at walltimes every 30 s only.
PATIENCE_S = 110.0
_LOCK = "/var/lock/hpcpool-testbed"
#: Debian asks it before it starts the services of a package that it installs.
_POLICY = Path("/usr/sbin/policy-rc.d")
#: Below those of tunnels, and those that the system gives to whoever asks for any: nobody else takes one of them before
#: the server listens that it is for.
_PORTS = range(10_000, 20_000)


#: Set where nothing may be skipped, as in CI: then what is missing fails the tests that need it.
REQUIRED = bool(os.environ.get("HPCPOOL_TESTBED_REQUIRED"))


def missing(reason: str) -> NoReturn:
    """Skip the test for want of something or, where all must be there, fail it."""
    if REQUIRED:
        pytest.fail(f"HPCPOOL_TESTBED_REQUIRED is set, but {reason}")
    pytest.skip(reason)


def require(*packages: str) -> None:
    """Install Debian packages, without starting their services; skip the test where that cannot be done."""
    if os.geteuid() != 0:
        missing(f"installing and running {packages[0]} needs root")
    if shutil.which("apt-get") is None or not os.path.exists("/etc/debian_version"):
        missing(f"{packages[0]} is installed from Debian's packages, and this is not Debian")
    # Test runs side by side install one after the other, so that none of them starts services.
    with open(_LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = [package for package in packages if not _is_installed(package)]
        if wanted:
            _install(wanted)


def _is_installed(package: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${Status}", package]
    return "ok installed" in subprocess.run(query, capture_output=True, text=True, check=False).stdout


def _install(packages: Sequence[str]) -> None:
    had_policy = _POLICY.exists()
    if not had_policy:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        done = _apt_get("install", "--no-install-recommends", *packages)
        if done.returncode != 0:  # the lists are old, or not there
            _apt_get("update")
            done = _apt_get("install", "--no-install-recommends", *packages)
        if done.returncode != 0:
            missing(f"{' '.join(packages)} cannot be installed: {done.stdout[-500:]}")
    finally:
        if not had_policy:
            _POLICY.unlink()


def _apt_get(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=60", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Ports of a loopback address that nobody listens on now."""
    ports = random.SystemRandom().sample(_PORTS, len(_PORTS))
    return list(itertools.islice((port for port in ports if _is_free(address, port)), count))


def _is_free(address: str, port: int) -> bool:
    try:
        socket.create_server((address, port)).close()
    except OSError:
        return False
    return True


def until(condition: Callable[[], T], what: str, timeout_s: float = PATIENCE_S) -> T:
    """Wait until a condition is true and return what it returned."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.1)  # most of them ask a batch system
    return value


#: Starts and stops one command as it reads, and stops it for good when nobody can tell it anything any more.
_KEEP = """
pid=
stop() { if [ -n "$pid" ]; then kill "$pid"; wait "$pid"; pid=; fi; }
while read -r word; do
    if [ "$word" = start ]; then "$@" >> "$LOG" 2>&1 < /dev/null & pid=$!; else stop; fi
    echo done
done
stop
"""


class Daemons:
    """Servers, each with a log and a keeper: a child of the tests that stays when the server is stopped for a while.

    Args:
        folder: for the logs.
        environment: added to that of the tests.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._keepers: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *command: str) -> None:
        """Start a server; again after `stop`: with the command that it had."""
        if name not in self._keepers:
            self._keepers[name] = subprocess.Popen(
                ["sh", "-c", _KEEP, "keep", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **self._environment, "LOG": str(self._folder / f"{name}.log")},
                text=True,
            )
        self._tell(name, "start")

    def stop(self, name: str) -> None:
        self._tell(name, "stop")

    def stop_all(self) -> None:
        """Stop them and their keepers, the last one first."""
        for keeper in reversed(list(self._keepers.values())):
            keeper.communicate(timeout=PATIENCE_S)

    def logs(self) -> str:
        """The ends of all logs, for a failure."""
        logs = self._folder.glob("*.log")
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-2000:]}" for path in logs)

    def _tell(self, name: str, word: str) -> None:
        keeper = self._keepers[name]
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        keeper.stdin.write(f"{word}\n")
        keeper.stdin.flush()
        assert keeper.stdout.readline() == "done\n"
