"""The manager's hold on its fork server: the process, the channel to it, and its end. It knows nothing of tasks."""

from __future__ import annotations

import subprocess

from hpcpool.processes import sessions
from hpcpool.processes.start_command import start_command
from hpcpool.wire import fork_channel
from hpcpool.wire.fork_channel import EndWorker, StartWorker, ToManager

#: How long it may take to end when its channel is closed (seconds).
_END_S = 3.0
#: How long killed processes may take to vanish (seconds).
_VANISH_S = 2.0


class ForkServerHandle:
    """Starts the fork server of a node. If it dies, `hear` returns None; what is said to it then is lost."""

    def __init__(self, directory: str, start_method: str, census: int) -> None:
        self._channel, end = fork_channel.channel()
        with end:
            self._process = subprocess.Popen(
                start_command("fork-server", end.fileno(), directory, start_method, census),
                stdin=subprocess.DEVNULL,
                pass_fds=(end.fileno(), census) if census >= 0 else (end.fileno(),),
            )

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to hear."""
        return self._channel.fileno()

    def start_worker(self, number: int, ends: tuple[int, int, int]) -> None:
        """Have a worker started with its ends of calls, link and stderr."""
        self._say(StartWorker(number), ends)

    def end_worker(self, number: int, signal_number: int, *, session: bool) -> None:
        """Have a signal sent to a worker; `session`: kill it with all that its call has started."""
        self._say(EndWorker(number, signal_number, session))

    def hear(self) -> ToManager | None:
        """Return what it says next; None when it has gone."""
        try:
            return fork_channel.hear_as_manager(self._channel)
        except ConnectionResetError:
            return None

    def close(self) -> None:
        """Have it end all workers and leave; returns when nothing of the node is left."""
        self._channel.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        sessions.kill_descendants(_VANISH_S)  # if it was killed, what it had started has come to us

    def _say(self, message: StartWorker | EndWorker, descriptors: tuple[int, ...] = ()) -> None:
        try:
            fork_channel.say(self._channel, message, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            return  # its channel's end will be heard
