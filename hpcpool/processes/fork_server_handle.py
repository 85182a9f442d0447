"""The manager's hold on its fork server: the process, the channel to it, and its end. It knows nothing of tasks."""

from __future__ import annotations

from hpcpool.processes import fork_server_process, sessions
from hpcpool.processes.process_end import has_child_ended
from hpcpool.wire import fork_channel
from hpcpool.wire.fork_channel import Begin, EndWorker, StartWorker, ToManager

#: How long it may take to end when its channel is closed (seconds).
_END_S = 3.0


class ForkServerHandle:
    """Starts the fork server of a node. If it dies, `hear` returns None; what is said to it then is lost.

    Args:
        directory: the node's.
        start_method: how it starts workers.
        census: as of `Manager`.
        log_path: where its stderr goes; None: where this process's own goes.

    Raises `OSError` if it cannot be started.
    """

    def __init__(self, directory: str, start_method: str, census: int, log_path: str | None = None) -> None:
        self._directory = directory
        self._process, self._channel = fork_server_process.start(census, log_path)
        self._say(Begin(directory, start_method))

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to hear."""
        return self._channel.fileno()

    def start_worker(
        self, number: int, ends: tuple[int, int, int], cores: tuple[int, ...], environment: dict[str, str]
    ) -> None:
        """Have a worker started: its ends of permits, link and stderr, the cores it is bound to, more environment."""
        self._say(StartWorker(number, cores, environment), ends)

    def end_worker(self, number: int, signal_number: int, *, session: bool) -> None:
        """Have a signal sent to a worker; `session`: kill it with all that its call has started."""
        self._say(EndWorker(number, signal_number, session))

    def hear(self) -> ToManager | None:
        """Return what it says next; None when it has gone."""
        try:
            return fork_channel.hear_as_manager(self._channel)
        except ConnectionResetError:
            return None

    def close(self) -> int:
        """Have it end all workers and leave; returns its exit code when nothing of the node is left."""
        self._channel.close()
        if not has_child_ended(self._process, _END_S):
            self._process.kill()
        exit_code = self._process.wait()
        # If it was killed, what it had started has come to us.
        sessions.kill_orphans(lambda mark: mark.startswith(f"{self._directory}:"))
        return exit_code

    def _say(self, message: Begin | StartWorker | EndWorker, descriptors: tuple[int, ...] = ()) -> None:
        try:
            fork_channel.say(self._channel, message, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            return  # its channel's end will be heard
