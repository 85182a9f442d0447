"""A gate at which calls in other processes wait until a test opens it. No test is here."""

from __future__ import annotations

import os
from pathlib import Path


def pass_gate(path: str) -> str:
    """Return when the gate is open. This runs in a worker."""
    with open(path) as gate:
        return gate.read()


class Gate:
    """A named pipe that is empty while the test holds its other end; once open, an empty file takes its place."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "gate"
        os.mkfifo(self._path)
        self._end: int | None = os.open(self._path, os.O_RDWR)
        self.path = str(self._path)

    def open(self) -> None:
        """Let all pass that wait here, and all that will come."""
        if self._end is not None:
            way_through = self._path.with_name("open-gate")
            way_through.touch()
            os.replace(way_through, self._path)
            os.close(self._end)
            self._end = None

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *error: object) -> None:
        self.open()
