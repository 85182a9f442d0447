"""The fork server: the parent of a node's workers. One thread; it forks, reaps and ends them.

It is kept clean (nothing runs here that could hold a lock while it forks), so a worker starts in milliseconds and
imports are paid once. It is the only process that signals workers: it has not reaped them yet, so a process id can
never mean somebody else. Where the kernel allows, orphans of its workers come to it: those of a worker that died are
ended with that worker, all others (what a call has left behind on purpose) with the fork server.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
from collections import deque

from hpcpool.processes import sessions, worker
from hpcpool.processes.census import is_client_gone
from hpcpool.processes.start_command import start_command
from hpcpool.wire import fork_channel, run_directory
from hpcpool.wire.fork_channel import (
    Begin,
    EndWorker,
    StartWorker,
    ToForkServer,
    ToManager,
    WorkerEnded,
    WorkerNotStarted,
    WorkerStarted,
)
from hpcpool.wire.messages import prepare_decoders

#: How long killed processes may take to vanish (seconds); one that is stuck in the kernel must not hold us for ever.
_VANISH_S = 2.0


def main(argv: list[str]) -> None:
    """Serve until the manager goes: inherited channel and census (or -1). What it is to serve comes on the channel."""
    end, census = argv
    prepare_decoders()
    with socket.socket(fileno=int(end)) as channel:
        heard = fork_channel.hear_as_fork_server(channel)
        if heard is None:
            return  # it was started ahead and is not wanted
        begin, _ = heard
        if not isinstance(begin, Begin):
            raise RuntimeError(f"the first message to a fork server was {begin}")
        os.chdir(os.path.dirname(begin.directory))  # workers go where the client is
        ForkServer(channel, begin.directory, begin.start_method, int(census)).serve()


class ForkServer:
    """Starts and ends the workers of one node."""

    def __init__(self, channel: socket.socket, node_directory: str, start_method: str, census: int) -> None:
        self._channel = channel
        # The manager may be sending when we are: if both waited for the other to read, both would wait for ever.
        channel.setblocking(False)
        #: What the channel had no room for, oldest first.
        self._unsaid: deque[ToManager] = deque()
        self._node_directory = node_directory
        self._start_method = start_method
        self._census = census
        self._workers: dict[int, int] = {}  # pid -> worker
        self._oom_kills = _oom_kills()
        self._wake_read, self._wake_write = os.pipe()
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        sessions.adopt_orphans()
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Do what the manager asks; when it goes, end everything."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            try:
                while True:
                    watched = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsaid else 0)
                    selector.modify(self._channel, watched)
                    for key, events in selector.select():
                        if key.fileobj is self._channel:
                            self._say_on()
                            if not events & selectors.EVENT_READ:
                                continue
                            if (heard := fork_channel.hear_as_fork_server(self._channel)) is None:
                                return
                            self._obey(*heard)
                        else:
                            os.read(self._wake_read, 4096)
                            self._reap()
            except (ConnectionError, BrokenPipeError):
                return
            finally:
                sessions.kill_descendants(_VANISH_S)
                self._remove_run_directory()

    def _remove_run_directory(self) -> None:
        """Do it in place of those who should have, and may have been killed: the client, or here its manager."""
        directory = os.path.dirname(self._node_directory)
        if not os.path.exists(os.path.join(directory, "connection.json")):  # a node's own, on another host
            run_directory.remove_if_dead(directory)
        elif is_client_gone(self._census):
            run_directory.remove(directory)

    def _say(self, message: ToManager) -> None:
        self._unsaid.append(message)
        self._say_on()

    def _say_on(self) -> None:
        """Say what waits, as far as there is room."""
        while self._unsaid:
            try:
                fork_channel.say(self._channel, self._unsaid[0])
            except BlockingIOError:
                return
            self._unsaid.popleft()

    def _obey(self, message: ToForkServer, descriptors: list[int]) -> None:
        match message:
            case StartWorker():
                try:
                    self._start_worker(message, descriptors)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
            case EndWorker(worker=number, signal=number_of_signal, session=session):
                for pid in [pid for pid, known in self._workers.items() if known == number]:
                    if session:
                        sessions.kill_family(pid)
                    else:
                        sessions.signal_process(pid, number_of_signal)

    def _start_worker(self, order: StartWorker, descriptors: list[int]) -> None:
        fork_server, number = os.getpid(), order.worker
        try:
            pid = os.fork()
        except OSError as error:  # the system has no room for another process
            self._say(WorkerNotStarted(number, str(error)))
            return
        if pid == 0:
            self._become_worker(fork_server, order, *descriptors)
        self._workers[pid] = number
        self._say(WorkerStarted(number, pid))

    def _become_worker(self, fork_server: int, order: StartWorker, permits: int, link: int, stderr: int) -> None:
        """Turn this fresh fork into a worker; never returns."""
        number = order.worker
        try:
            os.setsid()
            sessions.die_with(fork_server)
            worker.forget_fork_server()
            os.dup2(stderr, 2)
            os.environ.update(order.environment)
            _bind(order.cores)
            for descriptor in (stderr, self._census, self._wake_read, self._wake_write, self._channel.fileno()):
                if descriptor >= 0:
                    os.close(descriptor)
            if self._start_method == "spawn":
                os.set_inheritable(permits, True)
                os.set_inheritable(link, True)
                os.execv(sys.executable, start_command("worker", number, self._node_directory, permits, link))
            _name_process("hpcpool-worker")
            worker.serve(number, self._node_directory, permits, socket.socket(fileno=link))
        except BaseException:  # noqa: BLE001 - a fork must never run on in the fork server's own loop
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _reap(self) -> None:
        """Collect all that have ended; of a worker's session nothing may stay."""
        try:
            # Looked at first, and reaped only when all is done: until then the number stands for nothing else.
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                self._on_end(ended.si_pid)
        except ChildProcessError:
            return

    def _on_end(self, pid: int) -> None:
        number = self._workers.pop(pid, None)
        if number is None:  # an orphan of some worker that has come to us
            os.waitpid(pid, 0)
            return
        sessions.kill_session(pid)
        _, status = os.waitpid(pid, 0)
        if status:
            sessions.kill_orphans(worker.mark(self._node_directory, number).__eq__, self._workers)
        oom_kills = _oom_kills()
        out_of_memory, self._oom_kills = oom_kills > self._oom_kills, oom_kills
        self._say(WorkerEnded(number, os.waitstatus_to_exitcode(status), out_of_memory))


def _bind(cores: tuple[int, ...]) -> None:
    """Bind this process to cores, where there is such a thing: not on macOS."""
    if cores and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, cores)
        except OSError as error:  # the batch system has taken some of them away since the manager has looked
            sys.stderr.write(f"hpcpool: a worker cannot be bound to cores {cores}: {error}\n")


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
