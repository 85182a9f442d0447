"""The fork server: the parent of a node's workers. One thread, no ZeroMQ; it forks, reaps and ends them.

It is kept clean (nothing runs here that could hold a lock while it forks), so a worker starts in milliseconds and
imports are paid once. It is the only process that signals workers: it has not reaped them yet, so a process id can
never mean somebody else. Where the kernel allows, orphans of its workers come to it and are ended with it.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket
import sys

import psutil

from hpcpool.processes import worker
from hpcpool.processes.sessions import signal_process, signal_session
from hpcpool.wire import fork_channel
from hpcpool.wire.fork_channel import EndWorker, StartWorker, WorkerEnded, WorkerStarted

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> None:
    """Serve until the manager goes: inherited channel, node directory, start method, inherited census (or -1)."""
    channel, node_directory, start_method, census = argv
    ForkServer(socket.socket(fileno=int(channel)), node_directory, start_method, int(census)).serve()


class ForkServer:
    """Starts and ends the workers of one node."""

    def __init__(self, channel: socket.socket, node_directory: str, start_method: str, census: int) -> None:
        self._channel = channel
        self._node_directory = node_directory
        self._start_method = start_method
        self._census = census
        self._workers: dict[int, int] = {}  # pid -> worker
        self._oom_kills = _oom_kills()
        self._wake_read, self._wake_write = os.pipe()
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Do what the manager asks; when it goes, end everything."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            try:
                while True:
                    for key, _ in selector.select():
                        if key.fileobj is self._channel:
                            if (heard := fork_channel.hear_as_fork_server(self._channel)) is None:
                                return
                            self._obey(*heard)
                        else:
                            os.read(self._wake_read, 4096)
                            self._reap()
            except (ConnectionError, BrokenPipeError):
                return
            finally:
                self._end_all()

    def _obey(self, message: StartWorker | EndWorker, descriptors: list[int]) -> None:
        match message:
            case StartWorker(worker=number):
                pid = os.fork()
                if pid == 0:
                    self._become_worker(number, *descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                self._workers[pid] = number
                fork_channel.say(self._channel, WorkerStarted(number, pid))
            case EndWorker(worker=number, signal=number_of_signal, session=session):
                for pid in [pid for pid, known in self._workers.items() if known == number]:
                    if session:
                        signal_session(pid, number_of_signal)
                    else:
                        signal_process(pid, number_of_signal)

    def _become_worker(self, number: int, calls: int, link: int, stderr: int) -> None:
        """Turn this fresh fork into a worker; never returns."""
        try:
            os.setsid()
            if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and os.getppid() == 1:
                os._exit(1)  # the fork server died before the request took hold
            worker.forget_fork_server()
            os.dup2(stderr, 2)
            for descriptor in (stderr, self._census, self._wake_read, self._wake_write, self._channel.fileno()):
                if descriptor >= 0:
                    os.close(descriptor)
            if self._start_method == "spawn":
                os.set_inheritable(calls, True)
                os.set_inheritable(link, True)
                start = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py")
                arguments = ["worker", str(number), self._node_directory, str(calls), str(link)]
                os.execv(sys.executable, [sys.executable, "-P", start, *arguments])
            _name_process("hpcpool-worker")
            worker.serve(number, self._node_directory, socket.socket(fileno=calls), socket.socket(fileno=link))
        except BaseException:  # noqa: BLE001 - a fork must never run on in the fork server's own loop
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _reap(self) -> None:
        """Collect all that have ended; of a worker's session nothing may stay."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self._workers.pop(pid, None)
            if number is None:
                continue  # an orphan of some worker that has come to us
            signal_session(pid, signal.SIGKILL)
            oom_kills = _oom_kills()
            out_of_memory, self._oom_kills = oom_kills > self._oom_kills, oom_kills
            fork_channel.say(self._channel, WorkerEnded(number, os.waitstatus_to_exitcode(status), out_of_memory))

    def _end_all(self) -> None:
        for pid in list(self._workers):
            signal_session(pid, signal.SIGKILL)
        for child in psutil.Process().children(recursive=True):
            signal_process(child.pid, signal.SIGKILL)


def _prctl(option: int, value: int) -> bool:
    """Call Linux's prctl(2); False where there is none."""
    try:
        return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)
    except AttributeError:
        return False


def _name_process(name: str) -> None:
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(name)
    except OSError:
        return


def _oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory on this host (proc(5), /proc/vmstat)."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
