"""A file that comes from elsewhere: written beside its place, and there when it is whole. Not where it comes from.

For folders of ours that several processes use, of which one, who holds a lock, brings a certain file. So what is beside
it can always have the same name, and what one that was killed has left is written over by the next. In a folder of the
user's, where nobody would come after, it is a `processes.new_file`.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def bring(part: str, path: str, write: Callable[[int], object]) -> None:
    """Have a file written, and put it in its place, whose folder is made if it is not there.

    Args:
        part: its path until it is whole, on the same file system; for the caller alone.
        path: its place.
        write: is given the open, empty file. What it raises is passed on, and nothing stays.
    """
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write(descriptor)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.replace(part, path)
    except BaseException:
        os.remove(part)
        raise
    finally:
        os.close(descriptor)
