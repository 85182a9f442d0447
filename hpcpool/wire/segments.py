"""Segments: files in shared memory, each holding one large buffer; what travels between processes is its reference.

A segment belongs to one object of one process (`Segment`), and goes when that goes. The client owns those of arguments
from the start, and those of results from the moment that their reference reaches it. Who opens a segment gets memory of
its own: what a call changes in place, no other call sees. Files that nobody looks at any more are used again, since
most of what a new one costs is the kernel's clearing of its pages.

Segments live below the run directory, in `shm`, or where tmpfs has no room in `spill` (see `wire.run_directory`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import mmap
import os
import struct
import weakref
from collections.abc import Container, Iterable
from typing import Any

from hpcpool.errors import ResultLost
from hpcpool.wire.keeper import Keeper
from hpcpool.wire.memory import address, is_same

log = logging.getLogger("hpcpool")

#: Buffers from this size on go into segments; below, to copy them along costs less than the files.
SEGMENT_BYTES = 128 * 1024
#: From this size on a segment is mapped; below, reading it costs less than the page faults.
_MAP_BYTES = 512 * 1024
#: What tmpfs always keeps free, for others, as a share of its size.
_RESERVE = 0.1
#: Most bytes in files that wait to be used again.
_FREE_BYTES = 256 * 1024 * 1024
#: write(2) takes at most 2 GiB - 4 KiB at once.
_MOST_WRITTEN = 1 << 30
#: Kind (see below) and bytes of a segment; its path below the run directory follows.
_REFERENCE = struct.Struct("!BQ")
#: The buffer of a `bytes` object: it is opened as one, which can be no view of a mapping.
_BYTES = 1
_MEMORY = 0
#: The end of a result's name while its worker may still die without having told of it.
_UNTOLD = ".untold"

#: Grows with each fork of this process. A child sees what was there before, so those files must not be used again.
_epoch = [0]
os.register_at_fork(after_in_parent=lambda: _epoch.__setitem__(0, _epoch[0] + 1))

Buffer = Any  # bytes, bytearray or memoryview


# -- references -------------------------------------------------------------------------------------------------------


def _read_reference(reference: Buffer) -> tuple[int, int, str]:
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


def tell(run_directory: str, references: Iterable[Buffer]) -> None:
    """Note that segments of a worker are known by these references from now on, whatever becomes of the worker."""
    for reference in references:
        path = os.path.join(run_directory, _read_reference(reference)[2])
        with contextlib.suppress(FileNotFoundError):  # the pool has ended
            os.rename(path + _UNTOLD, path)


def discard(run_directory: str, references: Iterable[Buffer]) -> None:
    """Remove segments whose references nobody will get."""
    for reference in references:
        _remove(_located(run_directory, _read_reference(reference)[2]))


def sweep(run_directory: str, prefix: str, *, untold: bool = False, spare: Container[str] = ()) -> None:
    """Remove the segments of makers that have died, but for `spare`; with `untold` only what nobody was told of."""
    for folder in ("shm", "spill"):
        directory = os.path.join(run_directory, folder)
        for name in _names(directory):
            is_meant = name.startswith(prefix) and (name.endswith(_UNTOLD) or not untold)
            # One that has come from another host may be in the other folder than its reference says.
            if is_meant and f"shm/{name}" not in spare and f"spill/{name}" not in spare:
                _remove(os.path.join(directory, name))


def path_of(reference: Buffer) -> tuple[str, int]:
    """Return where a segment is, below the run directory, and its bytes; ValueError if this is no reference."""
    _, nbytes, path = _read_reference(reference)
    return path, nbytes


def content_of(run_directory: str, reference: Buffer) -> Buffer:
    """Return the content of a segment, to be sent to another host; OSError if it has gone."""
    _, nbytes, path = _read_reference(reference)
    return _map(_located(run_directory, path), nbytes)


def place(run_directory: str, reference: Buffer, content: Buffer) -> None:
    """Keep the content of a segment that comes from another host, so that its reference holds good here, too.

    Raises ValueError if they do not fit, OSError if there is room for it neither in shared memory nor on disk.
    """
    _, nbytes, path = _read_reference(reference)
    view = memoryview(content).cast("B")
    if view.nbytes != nbytes:
        raise ValueError(f"{view.nbytes} bytes came for a segment of {nbytes}")
    name = os.path.basename(path)
    if _leaves_reserve(os.path.join(run_directory, "shm", "free"), nbytes):
        try:
            _write_file(os.path.join(run_directory, "shm", name), view)
            return
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    _write_file(os.path.join(run_directory, "spill", name), view)


def drop(run_directory: str, paths: Iterable[str]) -> None:
    """Remove segments that came from another host."""
    for path in paths:
        _remove(_located(run_directory, path))


def _located(run_directory: str, path: str) -> str:
    """Return where a segment is: one that came from another host may be in the other folder."""
    full_path = os.path.join(run_directory, path)
    if not os.path.exists(full_path):
        folder, _, name = path.partition("/")
        other = os.path.join(run_directory, "spill" if folder == "shm" else "shm", name)
        if os.path.exists(other):
            return other
    return full_path


class Opened:
    """Opens the segments of one call, and knows whether anybody still looks at them afterwards."""

    def __init__(self, run_directory: str) -> None:
        self._run_directory = run_directory
        self._mappings: list[weakref.ref[mmap.mmap]] = []
        self._epoch = _epoch[0]

    def __call__(self, reference: Buffer) -> Buffer:
        """Return the content of a segment, in memory of the caller's own."""
        kind, nbytes, path = _read_reference(reference)
        memory = _open_anywhere(self._run_directory, path, nbytes, kind)
        if isinstance(memory, mmap.mmap):
            self._mappings.append(weakref.ref(memory))
        return memory

    @property
    def are_in_use(self) -> bool:
        """Whether something still looks at what was opened; a process that was forked since is taken to do so."""
        return bool(self._mappings) and (
            self._epoch != _epoch[0] or any(mapping() is not None for mapping in self._mappings)
        )


def _open_anywhere(run_directory: str, path: str, nbytes: int, kind: int) -> Buffer:
    try:
        return _open(os.path.join(run_directory, path), nbytes, kind)
    except FileNotFoundError:
        return _open(_located(run_directory, path), nbytes, kind)


def _open(path: str, nbytes: int, kind: int) -> Buffer:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if kind == _BYTES:
            return _read_bytes(descriptor, nbytes)
        if nbytes >= _MAP_BYTES:
            with contextlib.suppress(OSError):  # too many mappings: a copy does as well
                return _Mapping(descriptor, nbytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        memory = bytearray(nbytes)
        with memoryview(memory) as view:
            position = 0
            while position < nbytes:
                position += _checked(os.preadv(descriptor, [view[position : position + _MOST_WRITTEN]], position), path)
        return memory
    finally:
        os.close(descriptor)


def _map(path: str, nbytes: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(descriptor)


def _read_bytes(descriptor: int, nbytes: int) -> bytes:
    data = os.pread(descriptor, min(nbytes, _MOST_WRITTEN), 0)
    if len(data) == nbytes:
        return data
    pieces = [data]
    position = len(data)
    while position < nbytes:
        pieces.append(os.pread(descriptor, min(nbytes - position, _MOST_WRITTEN), position))
        position += _checked(len(pieces[-1]), "a segment")
    return b"".join(pieces)


def _checked(count: int, path: str) -> int:
    if not count:
        raise EOFError(f"{path} is shorter than its reference says")
    return count


class _Mapping(mmap.mmap):
    """Private memory over a segment, which stays as long as this does."""

    segment: Segment | None = None


# -- segments ---------------------------------------------------------------------------------------------------------


class Segment:
    """One segment, and the right to its file: removes it, or has it used again, when this object goes."""

    __slots__ = (
        "__weakref__",
        "_epoch",
        "_is_clean",
        "_kind",
        "_rest",
        "_source",
        "_twin",
        "is_away",
        "keeper",
        "loss",
        "nbytes",
        "path",
        "store",
    )

    def __init__(self, store: SegmentStore, path: str, nbytes: int, kind: int) -> None:
        self.store = store
        #: Below the run directory; "" when it belongs to somebody else, or has gone with the pool.
        self.path = path
        self.nbytes = nbytes
        self._kind = kind
        #: Who knows of it, if the node that made it is on another host and keeps it; None: it is here only.
        self.keeper: Keeper | None = None
        #: Its content is not on this host.
        self.is_away = False
        #: Why that can never come; "": it may.
        self.loss = ""
        #: Nobody but this process has looked at it.
        self._is_clean = True
        self._epoch = _epoch[0]
        #: Its content, when the file has gone with the pool.
        self._rest: Buffer | None = None
        #: The bytes object that it was made of, which never changes.
        self._source: bytes | None = None
        #: The file's memory, to compare other memory with.
        self._twin: mmap.mmap | None = None

    @property
    def reference(self) -> bytes:
        """What another process needs to open it."""
        return _REFERENCE.pack(self._kind, self.nbytes) + self.path.encode("ascii")

    @property
    def is_view(self) -> bool:
        """Whether what `view` returns shares the file's memory, so that to keep the segment costs nothing."""
        return bool(self.path) and self.nbytes >= _MAP_BYTES and self._kind == _MEMORY

    def view(self, *, is_last: bool = False) -> Buffer:
        """Return its content, in memory of the caller's own.

        Args:
            is_last: nobody will ask again.

        Raises:
            ResultLost: it was kept at a node, and has gone with that.
        """
        self.bring()
        if self.loss:
            raise ResultLost(f"a result was {self.loss}")
        if self._rest is None:
            try:
                memory = _open(self._full_path, self.nbytes, self._kind)
            except OSError:
                if self._rest is None:  # else the pool has ended in this moment
                    raise
            else:
                if isinstance(memory, _Mapping):
                    memory.segment = self
                return memory
        return self._rest if is_last or self._kind == _BYTES else bytearray(self._rest)

    def bring(self, until: float | None = None) -> None:
        """Wait until its content is on this host, or can never be.

        Args:
            until: wait no longer than this (the monotonic clock); `TimeoutError` then. None: as long as it takes.
        """
        if self.is_away and self.keeper is not None:
            self.keeper.bring(self, until)

    def holds(self, view: memoryview) -> bool:
        """Say whether this is the content of the file."""
        if self._source is not None and view.obj is self._source:
            return True
        try:
            if self._twin is None:
                self._twin = _map(self._full_path, self.nbytes)
        except OSError:  # the pool has ended, or there are too many mappings
            return False
        return is_same(view, self._twin, self.nbytes)

    def spoil(self) -> None:
        """Somebody may look at it even when it is over, so its file must not be used again."""
        self._is_clean = False

    def outlive_pool(self) -> None:
        """The pool ends, and its files with it: keep the content."""
        if self.path and not self.is_away:
            self._rest = _open(self._full_path, self.nbytes, self._kind)
            self.path = ""

    def give_away(self) -> None:
        """Somebody else has the reference, and the segment with it."""
        self.path = ""

    @property
    def _full_path(self) -> str:
        if self.keeper is not None:  # it has come from another host
            return _located(self.store.run_directory, self.path)
        return os.path.join(self.store.run_directory, self.path)

    def __del__(self) -> None:
        if not self.path or os.getpid() != self.store.pid:
            return
        if self.keeper is not None:
            self.keeper.let_go(self.path)
            if not self.is_away:
                drop(self.store.run_directory, [self.path])
        else:
            self.store.release(self.path, self.nbytes, self._is_clean and self._epoch == _epoch[0])


class SegmentStore:
    """Makes the segments of one process in one pool.

    Args:
        run_directory: of the pool.
        maker: the first part of the names of its files, unique in the pool.
        is_untold: until somebody has been told of a segment (see `tell`), its name says so.
    """

    def __init__(self, run_directory: str, maker: str, *, is_untold: bool = False) -> None:
        self.run_directory = run_directory
        self.pid = os.getpid()
        self._maker = maker
        self._ending = _UNTOLD if is_untold else ""
        self._numbers = itertools.count(1)
        self._free = os.path.join(run_directory, "shm", "free")
        self._segments: weakref.WeakValueDictionary[str, Segment] = weakref.WeakValueDictionary()
        #: By address, size and kind of the memory that they were made of.
        self._sources: weakref.WeakValueDictionary[tuple[int, int, int], Segment] = weakref.WeakValueDictionary()

    def share(self, buffer: Buffer) -> Segment:
        """Return a segment with this content: an old one, if this memory was shared before and has not changed.

        So an object that is an argument of many calls is there once. To find that out, all of it is compared (it
        takes a third of the time of another copy); of a `bytes` object nothing.
        """
        view = memoryview(buffer).cast("B")
        source = address(view), view.nbytes, _kind_of(view)
        known = self._sources.get(source)
        if known is not None and known.path and known.holds(view):
            return known
        segment = self.write(view)
        if source[2] == _BYTES:
            segment._source = view.obj  # type: ignore[assignment]
        self._sources[source] = segment
        return segment

    def write(self, buffer: Buffer) -> Segment:
        """Return a new segment with a copy of this content.

        Raises OSError if it can be written neither to shared memory nor to disk.
        """
        view = memoryview(buffer).cast("B")
        name = f"{self._maker}.{next(self._numbers)}"
        kind = _kind_of(view)
        if self._claim(view.nbytes, name) or self._has_room(view.nbytes):
            try:
                return self._fill(f"shm/{name}", view, kind)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        self._say_once(
            ".full",
            "shared memory (%s) is full: large arguments and results go through files in %s now, which is slower; hold "
            "fewer of them at a time, or have the system's shared memory made larger",
            os.path.realpath(os.path.join(self.run_directory, "shm")),
            os.path.join(self.run_directory, "spill"),
        )
        return self._fill(f"spill/{name}", view, kind)

    def warn_of(self, error: OSError) -> None:
        """A buffer could not be written, and goes along in messages."""
        if os.path.isdir(self._free):  # else the pool has ended, and will say so
            self._say_once(".failed", "large arguments and results are copied from process to process: %s", error)

    def adopt(self, reference: Buffer) -> Segment:
        """Take over a segment that another process has told of."""
        kind, nbytes, path = _read_reference(reference)
        path = os.path.relpath(_located(self.run_directory, path), self.run_directory)
        return self._noted(Segment(self, path, nbytes, kind))

    def adopt_kept(self, reference: Buffer, keeper: Keeper) -> Segment:
        """Take over a segment that stays at its node, on another host."""
        kind, nbytes, path = _read_reference(reference)
        segment = Segment(self, path, nbytes, kind)
        segment.keeper, segment.is_away = keeper, True
        return self._noted(segment)

    def outlive_pool(self) -> None:
        """The pool ends: keep the content of what is still held here."""
        for segment in list(self._segments.values()):
            try:
                segment.outlive_pool()
            except OSError as error:
                log.warning("a result of %d bytes is lost with its pool: %s", segment.nbytes, error)

    def sweep(self, prefix: str) -> None:
        """Remove the segments of makers that have died, but for those that are held here."""
        sweep(self.run_directory, prefix, spare=self._segments)

    def release(self, path: str, nbytes: int, is_clean: bool) -> None:
        """A segment of this process is over: have its file used again if that is safe and there are not too many."""
        full_path = os.path.join(self.run_directory, path + self._ending)
        if is_clean and path.startswith("shm/") and self._free_bytes() + (1 << _class(nbytes)) <= _FREE_BYTES:
            try:
                os.rename(full_path, os.path.join(self._free, f"{_class(nbytes)}-{path[4:]}"))
                return
            except OSError as error:
                log.debug("%s is not used again: %s", full_path, error)
        _remove(full_path)

    def _noted(self, segment: Segment) -> Segment:
        self._segments[segment.path] = segment
        return segment

    def _fill(self, path: str, view: memoryview, kind: int) -> Segment:
        _write_file(os.path.join(self.run_directory, path + self._ending), view)
        return self._noted(Segment(self, path, view.nbytes, kind))

    def _claim(self, nbytes: int, name: str) -> bool:
        """Take over a file that is free and about as large; False if there is none."""
        for free in _names(self._free):
            if free.startswith(f"{_class(nbytes)}-"):
                target = os.path.join(self.run_directory, "shm", name + self._ending)
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    os.rename(os.path.join(self._free, free), target)
                    return True
        return False

    def _has_room(self, nbytes: int) -> bool:
        if _leaves_reserve(self._free, nbytes):
            return True
        for free in _names(self._free):
            _remove(os.path.join(self._free, free))
        return _leaves_reserve(self._free, nbytes)

    def _free_bytes(self) -> int:
        return sum(1 << int(name.partition("-")[0]) for name in _names(self._free))

    def _say_once(self, name: str, text: str, *values: object) -> None:
        """Warn of something, once for the whole pool as far as that can be told."""
        try:
            os.close(os.open(os.path.join(self.run_directory, "spill", name), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        except OSError as error:
            log.debug("%s cannot be made: %s", name, error)
        log.warning(text, *values)


def _write_file(path: str, view: memoryview) -> None:
    """Write a file, whole or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        position = 0
        while position < view.nbytes:
            position += os.pwrite(descriptor, view[position : position + _MOST_WRITTEN], position)
    except BaseException:
        _remove(path)
        raise
    finally:
        os.close(descriptor)


def _leaves_reserve(directory: str, nbytes: int) -> bool:
    """Say whether the file system of a directory keeps its reserve when it takes so many bytes."""
    room = os.statvfs(directory)
    if not room.f_blocks:  # a tmpfs without a limit
        return True
    return room.f_bavail * room.f_frsize - nbytes >= _RESERVE * room.f_blocks * room.f_frsize


def _class(nbytes: int) -> int:
    """Files of one class are used for each other: their sizes differ by less than a factor of two."""
    return (nbytes - 1).bit_length()


def _kind_of(view: memoryview) -> int:
    return _BYTES if type(view.obj) is bytes else _MEMORY


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:  # the pool has ended
        return []
    except OSError as error:  # no descriptors left: nothing here is so urgent
        log.debug("%s cannot be read: %s", directory, error)
        return []


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:  # it has gone with the pool
        return
    except OSError as error:
        log.warning("%s cannot be removed now: %s", path, error)
