"""A file that appears in its place when it is whole: until then it has no name, or another one."""

from __future__ import annotations

import errno
import os
import tempfile

#: Of a file's name, so much goes into the name of what is written beside it: names have at most 255 bytes, and a
#: character up to 4.
_NAME_CHARS = 50
#: What kernels and file systems say that have no files without a name (open(2), O_TMPFILE; NFS is one of them).
_UNKNOWN = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


class NewFile:
    """An empty file beside its place. Where the system allows it has no name: then it goes however this process ends.

    Args:
        folder: where its place is.
        name: of its place.

    Raises `OSError` if it cannot be made.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._folder = folder
        self._prefix = f".{name[:_NAME_CHARS]}."
        #: What it is called now, until it is in its place.
        self._beside: str | None = None
        descriptor = _nameless(folder)
        if descriptor is None:
            descriptor, self._beside = tempfile.mkstemp(".hpcpool", self._prefix, folder)
        self.descriptor = descriptor

    def put_in_place(self, path: str) -> None:
        """Let it take the place of what is there; `OSError` if it cannot."""
        if self._beside is None:
            self._beside = self._named()
        os.replace(self._beside, path)
        self._beside = None

    def _named(self) -> str:
        """Give it a name: a new one, as no link takes the place of what is there."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while True:
                name = f"{self._prefix}{os.urandom(8).hex()}.hpcpool"
                try:
                    # With a folder it is linkat(2), which follows the link to what has no other name.
                    os.link(f"/proc/self/fd/{self.descriptor}", name, dst_dir_fd=folder)
                except FileExistsError:
                    continue
                return os.path.join(self._folder, name)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Close it; if it is not in its place it goes."""
        os.close(self.descriptor)
        if self._beside is not None:
            os.remove(self._beside)
            self._beside = None


def _nameless(folder: str) -> int | None:
    """Open a file without a name; None: there are none here."""
    if not (hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd")):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _UNKNOWN:
            return None
        raise
