"""The functions that a node's workers read: files in the node's directory. Who needs them is not known here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable


class BlobFiles:
    """Writes and removes them. What cannot be written (the disk is full) is kept, and tried again when it is needed."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._unwritten: dict[bytes, bytes] = {}

    def define(self, key: bytes, data: bytes) -> None:
        """Have a function at hand."""
        self._unwritten[key] = data
        self.write([key])

    def forget(self, key: bytes) -> None:
        """Nobody needs a function any more."""
        self._unwritten.pop(key, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(key))

    def write(self, keys: Iterable[bytes]) -> OSError | None:
        """Make sure that these are there; return what went wrong."""
        if not self._unwritten:
            return None
        for key in keys:
            data = self._unwritten.get(key)
            if data is None:
                continue
            error = write_file(self._path(key), data)
            if error is not None:
                return error
            del self._unwritten[key]
        return None

    def _path(self, key: bytes) -> str:
        return os.path.join(self._directory, key.hex())


def write_file(path: str, data: bytes) -> OSError | None:
    """Write a file, whole or not at all; return what went wrong."""
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        return error
    return None
