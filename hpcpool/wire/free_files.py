"""Files of segments that nobody looks at any more: they wait in `shm/free` for whoever of the pool writes the next one.

The name of a file there begins with its class, the binary logarithm of its size: files of one class, whose sizes differ
by less than a factor of two, are used for each other.
"""

from __future__ import annotations

import collections
import logging
import os

from hpcpool.wire.segment_files import leaves_reserve, names, remove, take

log = logging.getLogger("hpcpool")

#: Most bytes in files that wait.
_MOST_BYTES = 256 * 1024 * 1024


class FreeFiles:
    """The files that wait, as one process sees them. All threads may use it at any time, and so may finalizers.

    Args:
        shm: their directory is in this one.
        maker: the first part of the names of the files of this process.
    """

    def __init__(self, shm: str, maker: str) -> None:
        self.directory = os.path.join(shm, "free")
        self._shm = shm
        self._maker = maker
        #: The files that this process has made and given, by class: it need not look for them, and may have them
        #: mapped.
        self._own: collections.defaultdict[int, collections.deque[str]] = collections.defaultdict(collections.deque)
        #: Bytes of what has been given since they were counted; others may have taken some.
        self._given_bytes = _MOST_BYTES

    def give(self, path: str, nbytes: int) -> bool:
        """Let somebody use a file again; False, and it stays where it is, if there are enough."""
        size_class = _class(nbytes)
        if self._given_bytes + (1 << size_class) > _MOST_BYTES:
            self._given_bytes = sum(1 << int(name.partition("-")[0]) for name in names(self.directory))
            if self._given_bytes + (1 << size_class) > _MOST_BYTES:
                return False
        name = os.path.basename(path)
        try:
            os.rename(path, self._path(size_class, name))
        except OSError as error:
            log.debug("%s is not used again: %s", path, error)
            return False
        self._given_bytes += 1 << size_class
        if name.startswith(f"{self._maker}."):
            self._own[size_class].append(name)
        return True

    def claim(self, nbytes: int, path: str) -> bool:
        """Take over a file for so many bytes, under this path; False if there is none."""
        size_class = _class(nbytes)
        own = self._own[size_class]
        while own:
            try:
                name = own.pop()  # the last: it is the most likely to be mapped
            except IndexError:  # another thread was faster
                break
            if take(self._path(size_class, name), path):
                return True
        fitting = (name for name in names(self.directory) if name.startswith(f"{size_class}-"))
        return any(take(os.path.join(self.directory, name), path) for name in fitting)

    def leave_room(self, nbytes: int) -> bool:
        """Say whether there is room for a new file, if need be by removing those that wait."""
        if leaves_reserve(self.directory, nbytes):
            return True
        for name in names(self.directory):
            mine = os.path.join(self._shm, f"{self._maker}.{name}")
            if take(os.path.join(self.directory, name), mine):  # so nobody else does
                remove(mine, has_viewers=False)
        return leaves_reserve(self.directory, nbytes)

    def _path(self, size_class: int, name: str) -> str:
        return os.path.join(self.directory, f"{size_class}-{name}")


def _class(nbytes: int) -> int:
    return (nbytes - 1).bit_length()
