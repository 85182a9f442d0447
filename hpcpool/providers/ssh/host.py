"""One machine of an ad-hoc cluster: its jobs, its tunnel, its runner. It decides nothing about blocks.

Its methods wait for the machine and are called by the threads of a driver; one at a time, by a lock.
"""

from __future__ import annotations

import functools
import logging
import posixpath
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from hpcpool.errors import ConfigError, HostKeyError, SSHError
from hpcpool.providers.base import BlockRequest, SubmitError, Unreachable
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.ssh import host_jobs
from hpcpool.providers.ssh.host_jobs import Sight
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.ssh.node_python import NodePython
from hpcpool.providers.ssh.runner import SSHRunner
from hpcpool.providers.ssh.standing import Standing
from hpcpool.providers.ssh.tunnel import ReverseTunnel

logger = logging.getLogger(__name__)

#: Ports of this machine, and those that may lead there on others.
Reached: TypeAlias = Mapping[int, Sequence[int]]

_COMMAND_TIMEOUT_S = 20.0
#: A machine that allows no tunnel will not do so in the next minutes either.
_NO_TUNNEL_S = 60.0
#: A tunnel that was lost just now is most likely back by then.
_BACK_S = 5.0
#: Killing looks at all processes of the machine, a few times.
_KILL_TIMEOUT_S = 60.0
#: In the folder of a block: a program that becomes the Python of this machine.
PYTHON = "python"
_TAIL_BYTES = 8192
_TAIL_LINES = 20


class Host:
    """A machine that jobs are started on.

    Args:
        login: the machine.
        python: which Python its jobs have.
    """

    def __init__(self, login: SSHLogin, python: NodePython) -> None:
        self.login = login
        self._runner = SSHRunner(login)
        self._python = python
        #: Where that is; empty: not looked for yet.
        self._python_path = ""
        self._lock = threading.Lock()
        #: Once it was, it will be again; a machine that never was may be a slip of the user's.
        self._was_reached = False
        #: Tunnels by the port here that they lead to. There is none where the first attempt has failed.
        self._tunnels: dict[int, Standing[ReverseTunnel]] = {}
        #: Before this (monotonic clock) no other tunnel is tried.
        self._tunnel_at = 0.0

    def __str__(self) -> str:
        return self.login.destination

    def start(self, request: BlockRequest, folder: str, job: str, reached: Reached) -> None:
        """Start one job of a block.

        Args:
            folder: of the block.
            job: the job's own folder, in there.
            reached: ports of this machine that the job must reach, each with the ports to try there.

        Raises:
            Unreachable: the machine was reached before, and cannot be now.
            SubmitError: it was not started, and nothing of it remains as far as the machine can be asked.
        """
        with self._lock:
            try:
                self._hold_tunnels(reached)
                for tunnel in self._tunnels.values():
                    tunnel.wait(_BACK_S)  # in vain, there may be another route
                files = host_jobs.job_files(job, request.cwd, request.command, request.script, request.env)
                self._runner.write_files(folder, request.files)
                # Other machines may see the folder and write the same, so it is never there without its mode.
                self._runner.write_files(folder, {PYTHON: self._python_script()}, mode=0o700)
                self._runner.write_files(job, files)
            except (OSError, ConfigError) as error:
                is_outage = self._was_reached and isinstance(error, SSHError) and not isinstance(error, HostKeyError)
                raise (Unreachable if is_outage else SubmitError)(f"{self}: {error}") from error
            self._was_reached = True
            done = self._run(host_jobs.START, [job], _COMMAND_TIMEOUT_S)
            if done.code == 0 and done.stdout == "started\n":
                return
            if not done.was_not_started:
                self._run(host_jobs.KILL, [job], _KILL_TIMEOUT_S)
            self._runner.remove_folder(job)
            raise SubmitError(f"{self}: the job was not started: {done.words}")

    def look(self, jobs: Sequence[str], reached: Reached) -> list[Sight]:
        """Tell where jobs are, in the order of their folders; and try again to make tunnels that could not be made.

        Raises:
            SSHError: that cannot be found out now.
        """
        with self._lock:
            done = self._run(host_jobs.LOOK, jobs, _COMMAND_TIMEOUT_S)
            sights = host_jobs.read_look(done.stdout, len(jobs)) if done.code == 0 else None
            if sights is None:
                raise SSHError(f"{self}: {done.words}")
            if not all(sight.is_over for sight in sights):
                self._hold_tunnels(reached)
            return sights

    def end(self, jobs: Sequence[str], *, force: bool) -> None:
        """Ask jobs to end, or kill all that is left of them."""
        with self._lock:
            program, timeout_s = (host_jobs.KILL, _KILL_TIMEOUT_S) if force else (host_jobs.END, _COMMAND_TIMEOUT_S)
            done = self._run(program, jobs, timeout_s)
            if done.code != 0:
                logger.warning("host=%s jobs cannot be ended now: %s", self, done.words)

    def tail(self, job: str) -> str:
        """The last lines that a job wrote to its stderr."""
        with self._lock:
            text = self._runner.tail_of(posixpath.join(job, "err"), _TAIL_BYTES)
        lines = text.splitlines()
        if len(text.encode()) >= _TAIL_BYTES and len(lines) > 1:
            del lines[0]  # most likely cut
        return "\n".join(lines[-_TAIL_LINES:])

    def clear(self, folder: str) -> None:
        """Remove the folder of a block."""
        with self._lock:
            self._runner.remove_folder(folder)

    def close(self) -> None:
        """Let go of the connections; jobs run on."""
        with self._lock:
            for tunnel in self._tunnels.values():
                tunnel.close()
            self._tunnels.clear()
            self._runner.close()

    def _run(self, program: str, words: Sequence[str], timeout_s: float) -> CommandResult:
        return self._runner.run(("sh", "-s", "--", *words), timeout_s=timeout_s, stdin=program)

    def _hold_tunnels(self, reached: Reached) -> None:
        """See that a tunnel to each port stands. Without one the machine may still have a route to us."""
        for port, ports in reached.items():
            if port in self._tunnels or time.monotonic() < self._tunnel_at:
                continue
            tunnel = functools.partial(ReverseTunnel, self.login, ("127.0.0.1", port), ports=ports)
            try:
                self._tunnels[port] = Standing(f"host={self} its tunnel", tunnel)
            except (SSHError, ConfigError) as error:
                self._tunnel_at = time.monotonic() + _NO_TUNNEL_S
                logger.warning("host=%s has no tunnel to here: %s", self, error)

    def _python_script(self) -> bytes:
        """What stands in the folder of a block for Python: only this machine knows where it is."""
        self._python_path = self._python_path or self._python.find(self._runner, str(self))
        return f'#!/bin/sh\nexec {shlex.quote(self._python_path)} "$@"\n'.encode()
