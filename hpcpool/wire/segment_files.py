"""The files of segments, by their references: what everybody may do who is told of one (see `wire.segments`).

They live below the run directory, in `shm`, or where tmpfs has no room in `spill` (see `wire.run_directory`).
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
from collections.abc import Container, Iterable, Iterator
from typing import Any

from hpcpool.errors import is_from_handler

log = logging.getLogger("hpcpool")

#: What tmpfs always keeps free, for others, as a share of its size.
_RESERVE = 0.1
#: write(2) takes at most 2 GiB - 4 KiB at once.
MOST_WRITTEN = 1 << 30
#: Kind (see below) and bytes of a segment; its path below the run directory follows.
_REFERENCE = struct.Struct("!BQ")
#: The buffer of a `bytes` object: it is opened as one, which can be no view of a mapping.
BYTES = 1
MEMORY = 0

Buffer = Any  # bytes, bytearray or memoryview


def segment_maker(node_directory: str, number: int) -> str:
    """Return what the names of a worker's segments begin with."""
    return f"{os.path.basename(node_directory)}.{number}"


def make_reference(kind: int, nbytes: int, path: str) -> bytes:
    """Return what another process needs to open a segment: its kind, bytes and path below the run directory."""
    return _REFERENCE.pack(kind, nbytes) + path.encode("ascii")


def read_reference(reference: Buffer) -> tuple[int, int, str]:
    """Return kind, bytes and path below the run directory; ValueError if it is no reference."""
    try:
        kind, nbytes = _REFERENCE.unpack_from(reference)
        path = bytes(reference[_REFERENCE.size :]).decode("ascii")
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a reference to a segment: {error}") from error
    folder, _, name = path.partition("/")
    if folder not in ("shm", "spill") or not name or "/" in name or name.startswith("."):
        raise ValueError(f"not a reference to a segment: {path!r}")
    return kind, nbytes, path


def discard(run_directory: str, references: Iterable[Buffer]) -> None:
    """Remove segments whose references nobody will get."""
    for reference in references:
        remove(located(run_directory, read_reference(reference)[2]))


def sweep(run_directory: str, prefix: str, spare: Container[str]) -> None:
    """Remove the segments of makers that have died, but for those with these paths."""
    for directory, name in _made_by(run_directory, prefix):
        # One that has come from another host may be in the other folder than its reference says.
        if f"shm/{name}" not in spare and f"spill/{name}" not in spare:
            remove(os.path.join(directory, name))


def last_told(references: Iterable[Buffer]) -> int:
    """Return the number of the latest segment that these tell of, as its maker counts; ValueError as `path_of`."""
    return max((int(read_reference(reference)[2].rpartition(".")[2]) for reference in references), default=0)


def sweep_untold(run_directory: str, maker: str, told: int) -> None:
    """Remove the segments of a maker that has died before it told of them: those with a greater number than this."""
    prefix = f"{maker}."
    for directory, name in _made_by(run_directory, prefix):
        number = name[len(prefix) :]
        if not number.isdecimal() or int(number) > told:
            remove(os.path.join(directory, name))


def _made_by(run_directory: str, prefix: str) -> Iterator[tuple[str, str]]:
    for folder in ("shm", "spill"):
        directory = os.path.join(run_directory, folder)
        for name in names(directory):
            if name.startswith(prefix):
                yield directory, name


def path_of(reference: Buffer) -> tuple[str, int]:
    """Return where a segment is, below the run directory, and its bytes; ValueError if this is no reference."""
    _, nbytes, path = read_reference(reference)
    return path, nbytes


def content_of(run_directory: str, reference: Buffer) -> Buffer:
    """Return the content of a segment, to be sent to another host; OSError if it has gone."""
    _, nbytes, path = read_reference(reference)
    return map_shared(located(run_directory, path), nbytes)


def place(run_directory: str, reference: Buffer, content: Buffer) -> None:
    """Keep the content of a segment that comes from another host, so that its reference holds good here, too.

    Raises ValueError if they do not fit, OSError if there is room for it neither in shared memory nor on disk.
    """
    _, nbytes, path = read_reference(reference)
    view = memoryview(content).cast("B")
    if view.nbytes != nbytes:
        raise ValueError(f"{view.nbytes} bytes came for a segment of {nbytes}")
    name = os.path.basename(path)
    if leaves_reserve(os.path.join(run_directory, "shm", "free"), nbytes):
        try:
            write_file(os.path.join(run_directory, "shm", name), view)
            return
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    write_file(os.path.join(run_directory, "spill", name), view)


def drop(run_directory: str, paths: Iterable[str]) -> None:
    """Remove segments that came from another host."""
    for path in paths:
        remove(located(run_directory, path))


def located(run_directory: str, path: str) -> str:
    """Return where a segment is: one that came from another host may be in the other folder."""
    full_path = os.path.join(run_directory, path)
    if not os.path.exists(full_path):
        folder, _, name = path.partition("/")
        other = os.path.join(run_directory, "spill" if folder == "shm" else "shm", name)
        if os.path.exists(other):
            return other
    return full_path


def map_shared(path: str, nbytes: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(descriptor)


def write_file(path: str, view: memoryview) -> None:
    """Write a file, whole or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        position = 0
        while position < view.nbytes:
            position += os.pwrite(descriptor, view[position : position + MOST_WRITTEN], position)
    except BaseException:
        remove(path)
        raise
    finally:
        os.close(descriptor)


def leaves_reserve(directory: str, nbytes: int) -> bool:
    """Say whether the file system of a directory keeps its reserve when it takes so many bytes."""
    room = os.statvfs(directory)
    if not room.f_blocks:  # a tmpfs without a limit
        return True
    return room.f_bavail * room.f_frsize - nbytes >= _RESERVE * room.f_blocks * room.f_frsize


def names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:  # the pool has ended
        return []
    except OSError as error:  # no descriptors left: nothing here is so urgent
        if is_from_handler(error):
            raise
        log.debug("%s cannot be read: %s", directory, error)
        return []


def take(path: str, target: str) -> bool:
    """Take over a file; False if somebody else was faster."""
    try:
        os.rename(path, target)
    except FileNotFoundError:
        return False
    return True


def remove(path: str, *, has_viewers: bool = True) -> None:
    """Remove a file.

    Args:
        path: of the file.
        has_viewers: somebody may still look at its content. If not, its memory is free at once, whoever has it mapped.
    """
    if not has_viewers:
        _empty(path)
    _make_larger(path)
    try:
        os.unlink(path)
    except FileNotFoundError:  # it has gone with the pool
        return
    except OSError as error:
        log.warning("%s cannot be removed now: %s", path, error)


def _make_larger(path: str) -> None:
    """Let who has a file mapped see that it goes (see `wire.mappings`)."""
    try:
        os.truncate(path, os.stat(path).st_size + 1)
    except OSError as error:
        log.debug("%s stays as large as it is: %s", path, error)


def _empty(path: str) -> None:
    """Free the memory of a file. It keeps its size, since to look behind the end of a mapped file is a bus error."""
    if not hasattr(mmap, "MADV_REMOVE"):  # not Linux
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with mmap.mmap(descriptor, os.fstat(descriptor).st_size) as memory:
                memory.madvise(mmap.MADV_REMOVE)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # no descriptors left; a file system that cannot do it; an empty file
        log.debug("the memory of %s is free when nobody has it mapped any more: %s", path, error)
