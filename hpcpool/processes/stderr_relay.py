"""Carries what workers write to stderr on to the user's stderr, and keeps the last of it for crash reports.

Reading is the manager's; writing has a thread of its own, because the user's terminal or pager may stop reading, and
the manager must not stop with it. When that thread is too far behind, reading stops, so a worker that floods its
stderr waits as it would if it wrote there itself.
"""

from __future__ import annotations

import os
import queue
import threading

#: How much of each worker's stderr is kept for a crash report.
TAIL_BYTES = 8 * 1024
#: What may wait to be written before reading stops.
_WAITING_BYTES = 1024 * 1024


class StderrRelay:
    """One thread that writes to one descriptor.

    Args:
        descriptor: where to write.
        wake: a non-blocking descriptor that gets a byte when there is room again after `is_full`.
    """

    def __init__(self, descriptor: int, wake: int) -> None:
        self._descriptor = descriptor
        self._wake = wake
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._write_all, name="stderr relay", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """True when nothing more should be read for now."""
        return self._waiting > _WAITING_BYTES

    def pass_on(self, data: bytes) -> None:
        """Have these bytes written, in order."""
        with self._lock:
            self._waiting += len(data)
        self._pieces.put(data)

    def close(self, timeout_s: float) -> bool:
        """Write what waits; give up after a while, when nobody reads at the other end. Say whether it has ended."""
        self._pieces.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _write_all(self) -> None:
        while (data := self._pieces.get()) is not None:
            view = memoryview(data)
            while view:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except OSError:  # nobody reads any more: drop it, as the kernel would a write to a closed terminal
                    break
            with self._lock:
                was_full = self.is_full
                self._waiting -= len(data)
                has_room_again = was_full and not self.is_full
            if has_room_again:
                os.write(self._wake, b"\0")
