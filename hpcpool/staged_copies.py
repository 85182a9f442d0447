"""Copies of the client's files that a node keeps, in one folder for all of its workers; not where they come from.

A copy is brought by one process while the others wait, and appears whole. Who uses it holds a lock; when the disk is
full those go that nobody uses. All of them go with the folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hpcpool import part_file
from hpcpool.core.staging import Copy, to_let_go

#: Writes a copy to an open, empty file, and returns its permissions.
Bring = Callable[[int], int]

_LOCK = ".lock"


class Copies:
    """The folder, as one process uses it.

    Args:
        folder: is made if it is not there.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def hold(self, key: str, name: str, nbytes: int, bring: Bring) -> tuple[str, int]:
        """Return the path of a copy, which stays until the lock is closed, and the lock: a descriptor.

        Args:
            key: names the copy among all others; letters and digits.
            name: what the file is called.
            nbytes: its size.
            bring: called if the copy is not here. What it raises is passed on, and nothing stays.
        """
        path = os.path.join(self._folder, key, name)
        lock = os.open(self._of(key, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if os.path.exists(path):
                    os.utime(lock)
                    return path, lock
                # Here others may come in between, in both directions: so look again after each.
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not os.path.exists(path):
                    self._make_room(nbytes)
                    part_file.bring(self._of(key, ".part"), path, lambda part: os.fchmod(part, bring(part)))
        except BaseException:
            os.close(lock)
            raise

    def _of(self, key: str, end: str) -> str:
        return os.path.join(self._folder, key + end)

    def _make_room(self, nbytes: int) -> None:
        """Let go of copies if one of so many bytes has no room."""
        disk = os.statvfs(self._folder)
        free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        if not to_let_go([Copy("", nbytes, 0.0)], nbytes, free, size):
            return  # there is room: the usual case, and nobody else has to be asked
        unused = dict(self._unused())
        try:
            for key in to_let_go([copy for copy, _ in unused.values()], nbytes, free, size):
                shutil.rmtree(self._of(key, ""), ignore_errors=True)
        finally:
            for _, lock in unused.values():
                os.close(lock)

    def _unused(self) -> Iterator[tuple[str, tuple[Copy, int]]]:
        """The copies that nobody uses, each with a lock that keeps it so."""
        for path in Path(self._folder).glob(f"*{_LOCK}"):
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            key = path.name.removesuffix(_LOCK)
            nbytes = sum(file.stat().st_size for file in Path(self._of(key, "")).glob("*"))
            yield key, (Copy(key, nbytes, os.fstat(lock).st_mtime), lock)
