"""The progress bar of a map, on stderr. What is counted is not known here."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any


class ProgressBar:
    """A progress bar of finished items on stderr."""

    def __init__(self, total: int | None) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("map(progress=True) needs tqdm: pip install 'hpcpool[progress]'") from error
        self._lock = threading.Lock()
        self._bar = tqdm(total=total)

    def advance(self, items: int, future: Future[Any]) -> None:
        """Count the items of a finished task."""
        with self._lock:
            self._bar.update(items)

    def close(self) -> None:
        """Leave the bar as it stands."""
        with self._lock:
            self._bar.close()
