"""What keeps a pool from ending: work at the client that will submit more calls."""

from __future__ import annotations

from collections.abc import Callable


class Hold:
    """Work at the client that will submit more calls: a map that reads its input, a join."""

    def __init__(self, close: Callable[[bool], None]) -> None:
        self.close = close
        #: The thread that does the work, once it runs.
        self.thread: int | None = None
