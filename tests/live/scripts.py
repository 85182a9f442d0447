"""Programs of a user, run as processes of their own: what they print is how they tell how far they are."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.live.processes import PATIENCE_S, until

ROOT = Path(__file__).resolve().parent.parent.parent


def with_own_manager(program: str) -> str:
    """The same program, but the manager is a process of its own, as on another machine."""
    apart = re.sub(r"HPCPoolExecutor\((\d+)", r"HPCPoolExecutor(own_manager(\1)", program)
    assert apart != program
    return f"from tests.live.processes import own_manager\n{apart}"


class Script:
    """A running program in a session of its own, whose output is read line by line."""

    def __init__(self, path: Path, *arguments: object, python: tuple[str, ...] = (), **environment: str) -> None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, *python, str(path), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
            start_new_session=True,
        )
        self._read = {"out": b"", "err": b""}
        self._pipes = {"out": self.process.stdout.fileno(), "err": self.process.stderr.fileno()}

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self._read["out"].decode()

    @property
    def err(self) -> str:
        return self._read["err"].decode()

    def wait_for(self, text: str) -> None:
        """Wait until the program has printed a line with this on stdout."""
        deadline = time.monotonic() + PATIENCE_S * 2
        while text not in self.out.rpartition("\n")[0]:
            assert self._read_more(deadline - time.monotonic()), f"no {text!r} in:\n{self.out}\nstderr:\n{self.err}"

    def finish(self) -> int:
        """Wait for the program's end, and for all who hold its output; return its exit code."""
        deadline = time.monotonic() + PATIENCE_S * 2
        while self._pipes:
            assert self._read_more(deadline - time.monotonic()), f"it goes on:\n{self.out}\nstderr:\n{self.err}"
        return self.process.wait(PATIENCE_S)

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: SIGINT to the program's whole process group."""
        os.killpg(self.pid, signal.SIGINT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def _read_more(self, timeout_s: float) -> bool:
        ready, _, _ = select.select(list(self._pipes.values()), [], [], max(0.0, timeout_s))
        for name, fd in list(self._pipes.items()):
            if fd in ready:
                data = os.read(fd, 65536)
                self._read[name] += data
                if not data:
                    del self._pipes[name]
        return bool(ready)


@contextmanager
def script(path: Path, text: str, *arguments: object, **options: object) -> Iterator[Script]:
    """Run this text as a program; it is killed if the test has not ended it."""
    path.write_text(text)
    running = Script(path, *arguments, **options)
    try:
        yield running
    finally:
        running.close()


def until_gone(pid: int, timeout_s: float = PATIENCE_S) -> None:
    """Wait until a process that is not our child has gone, zombie and all."""
    until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of process {pid}", timeout_s)
