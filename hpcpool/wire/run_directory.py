"""The run directory of a pool: its sockets and logs, and what it has in shared memory.

`shm` is a link to a directory in tmpfs, for segments; `spill` takes what tmpfs has no room for. Whoever of the pool
ends last removes it all. Should all be killed at once, the next pool on this host does: client and interchange hold a
lock while they live.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile

log = logging.getLogger("hpcpool")

#: Where tmpfs is mounted on Linux.
_TMPFS = "/dev/shm"
_PREFIX = "hpcpool-"


def prepare(run_directory: str, outer: str | None = None) -> int:
    """Make the directories for segments; return the descriptor that holds the lock of the pool.

    Args:
        run_directory: exists, and its name begins with "hpcpool-".
        outer: inside a worker, the run directory of the pool around this one: what is made goes with that.
    """
    os.mkdir(os.path.join(run_directory, "spill"), 0o700)
    link = os.path.join(run_directory, "shm")
    place = os.path.realpath(os.path.join(outer, "shm")) if outer is not None else _TMPFS
    try:
        directory = tempfile.mkdtemp(prefix=os.path.basename(run_directory) + "-", dir=place)
    except OSError:  # no tmpfs here: the page cache does as well, where the disk allows
        os.mkdir(link, 0o700)
    else:
        os.symlink(run_directory, os.path.join(directory, "run"))  # tells whose it is
        os.symlink(directory, link)
    os.mkdir(os.path.join(link, "free"), 0o700)
    return _make_lock(os.path.join(link, "lock"))


def is_in_memory(run_directory: str) -> bool:
    """Say whether `shm` is in tmpfs, and not on a disk."""
    return os.path.realpath(os.path.join(run_directory, "shm")).startswith(os.path.join(os.path.realpath(_TMPFS), ""))


def _make_lock(path: str) -> int:
    """Make the file so that nobody ever sees it unlocked."""
    lock = os.open(f"{path}.new", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.rename(f"{path}.new", path)
    return lock


def hold(run_directory: str) -> int:
    """Hold the lock, too: nobody takes the pool for dead until this process has ended, or closes the descriptor."""
    lock = os.open(os.path.join(run_directory, "shm", "lock"), os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def remove(run_directory: str) -> None:
    """Remove a run directory and what it has in shared memory; what cannot be removed stays."""
    shutil.rmtree(os.path.realpath(os.path.join(run_directory, "shm")), ignore_errors=True)
    shutil.rmtree(run_directory, ignore_errors=True)


def remove_dead() -> None:
    """Remove what pools have left on this host of which all processes were killed at once."""
    try:
        names = os.listdir(_TMPFS)
    except OSError:  # there is no tmpfs
        return
    for name in names:
        if name.startswith(_PREFIX):
            _remove_if_dead(os.path.join(_TMPFS, name))


def remove_if_dead(run_directory: str) -> None:
    """Remove a run directory, and what it has in shared memory, unless somebody still holds its lock."""
    if _is_dead(os.path.join(run_directory, "shm")):
        remove(run_directory)


def _remove_if_dead(directory: str) -> None:
    """Do it for a directory in shared memory."""
    if not _is_dead(directory):
        return
    try:
        run_directory = os.readlink(os.path.join(directory, "run"))
    except OSError:  # it is being removed in this moment
        return
    log.info("%s is left of a pool that was killed: removed", directory)
    if os.path.realpath(os.path.join(run_directory, "shm")) == directory:
        shutil.rmtree(run_directory, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def _is_dead(directory: str) -> bool:
    """Whether nobody holds the lock in this directory any more."""
    try:
        lock = os.open(os.path.join(directory, "lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # another user's, or one that is being made or removed in this moment
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody lives
        return False
    finally:
        os.close(lock)
    return True
