"""Segments: files in shared memory, each holding one large buffer; what travels between processes is its reference.

A segment belongs to one object of one process (`Segment`), and goes when that goes. The client owns those of arguments
from the start, and those of results from the moment that their reference reaches it. Who opens a segment gets memory of
its own: what a call changes in place, no other call sees. Files that nobody looks at any more are used again, since
most of what a new one costs is the kernel's clearing of its pages, and so are mappings (`wire.mappings`).
"""

from __future__ import annotations

import errno
import itertools
import logging
import mmap
import os
import weakref

from hpcpool.errors import ResultLost, is_from_handler
from hpcpool.wire import segment_files
from hpcpool.wire.free_files import FreeFiles
from hpcpool.wire.keeper import Keeper
from hpcpool.wire.mappings import MAP_BYTES, Mappings
from hpcpool.wire.memory import address, is_same
from hpcpool.wire.references import is_last_reference
from hpcpool.wire.run_directory import is_in_memory
from hpcpool.wire.segment_files import (
    BYTES,
    MEMORY,
    MOST_WRITTEN,
    Buffer,
    located,
    make_reference,
    map_shared,
    read_reference,
    remove,
    write_file,
)

log = logging.getLogger("hpcpool")

#: Buffers from this size on go into segments; below, to copy them along costs less than the files.
SEGMENT_BYTES = 128 * 1024

#: Grows with each fork of this process. A child sees what was there before, so those files must not be used again.
_epoch = [0]
os.register_at_fork(after_in_parent=lambda: _epoch.__setitem__(0, _epoch[0] + 1))


class Opened:
    """Opens the segments of one call, and knows whether anybody still looks at them afterwards."""

    def __init__(self, store: SegmentStore) -> None:
        self._store = store
        self._lent = 0
        #: Has an entry for each of these at which nobody looks any more.
        self._returned: list[None] = []
        self._epoch = _epoch[0]

    def __call__(self, reference: Buffer) -> Buffer:
        """Return the content of a segment, in memory of the caller's own."""
        kind, nbytes, path = read_reference(reference)
        memory = _open_anywhere(self._store, path, nbytes, kind)
        if isinstance(memory, memoryview):
            self._lent += 1
            memory.obj.returned = self._returned  # type: ignore[attr-defined]
        return memory

    @property
    def are_in_use(self) -> bool:
        """Whether something still looks at what was opened; a process that was forked since is taken to do so."""
        return bool(self._lent) and (self._epoch != _epoch[0] or len(self._returned) < self._lent)


def _open_anywhere(store: SegmentStore, path: str, nbytes: int, kind: int) -> Buffer:
    try:
        return _open(store.mappings, os.path.join(store.run_directory, path), nbytes, kind)
    except FileNotFoundError:
        return _open(store.mappings, located(store.run_directory, path), nbytes, kind)


def _open(mappings: Mappings, path: str, nbytes: int, kind: int) -> Buffer:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if kind == BYTES:
            return _read_bytes(descriptor, nbytes)
        if nbytes >= MAP_BYTES:
            try:
                return mappings.read(descriptor, nbytes)
            except OSError as error:  # too many mappings: a copy does as well
                if is_from_handler(error):
                    raise
        memory = bytearray(nbytes)
        with memoryview(memory) as view:
            position = 0
            while position < nbytes:
                position += _checked(os.preadv(descriptor, [view[position : position + MOST_WRITTEN]], position), path)
        return memory
    finally:
        os.close(descriptor)


def _read_bytes(descriptor: int, nbytes: int) -> bytes:
    data = os.pread(descriptor, min(nbytes, MOST_WRITTEN), 0)
    if len(data) == nbytes:
        return data
    pieces = [data]
    position = len(data)
    while position < nbytes:
        pieces.append(os.pread(descriptor, min(nbytes - position, MOST_WRITTEN), position))
        position += _checked(len(pieces[-1]), "a segment")
    return b"".join(pieces)


def _checked(count: int, path: str) -> int:
    if not count:
        raise EOFError(f"{path} is shorter than its reference says")
    return count


class _Right:
    """The right to the file of a segment: removes it, or has it used again, when this object goes.

    It is none of the segment itself, to which there are weak references: they are good until a finalizer has run.
    """

    __slots__ = ("_epoch", "is_away", "is_clean", "keeper", "nbytes", "path", "store")

    def __init__(self, store: SegmentStore, path: str, nbytes: int) -> None:
        self.store = store
        #: Below the run directory; "" when it belongs to somebody else, or has gone with the pool.
        self.path = path
        self.nbytes = nbytes
        #: Who knows of it, if the node that made it is on another host and keeps it; None: it is here only.
        self.keeper: Keeper | None = None
        #: Its content is not on this host.
        self.is_away = False
        #: Nobody but this process has looked at it.
        self.is_clean = True
        self._epoch = _epoch[0]

    def __del__(self) -> None:
        if not self.path or os.getpid() != self.store.pid:
            return
        if self.keeper is not None:
            self.keeper.let_go(self.path)
            if not self.is_away:
                segment_files.drop(self.store.run_directory, [self.path])
        else:
            is_clean = self.is_clean and self._epoch == _epoch[0] and is_last_reference(self)
            self.store.release(self.path, self.nbytes, is_clean)


class Segment:
    """One segment; its file goes, or is used again, with this object."""

    __slots__ = ("__weakref__", "_digests", "_kind", "_rest", "_right", "_source", "_twin", "loss", "nbytes", "store")

    def __init__(self, store: SegmentStore, path: str, nbytes: int, kind: int) -> None:
        self.store = store
        self.nbytes = nbytes
        self._kind = kind
        self._right = _Right(store, path, nbytes)
        #: Why its content can never come here; "": it may, or is here.
        self.loss = ""
        #: Its content, when the file has gone with the pool.
        self._rest: Buffer | None = None
        #: The bytes object that it was made of, which never changes.
        self._source: bytes | None = None
        #: The file's memory, to compare other memory with.
        self._twin: mmap.mmap | None = None
        #: Of its pieces; see `is_same`.
        self._digests: dict[int, bytes] = {}

    @property
    def path(self) -> str:
        """Where it is, below the run directory; "" when it belongs to somebody else, or has gone with the pool."""
        return self._right.path

    @property
    def keeper(self) -> Keeper | None:
        """Who knows of it, if the node that made it is on another host and keeps it; None: it is here only."""
        return self._right.keeper

    @property
    def is_away(self) -> bool:
        """Whether its content is not on this host."""
        return self._right.is_away

    def has_come(self) -> None:
        """Its content is on this host now."""
        self._right.is_away = False

    def stay_away(self, keeper: Keeper) -> None:
        """Its content is on another host, and kept there."""
        self._right.keeper, self._right.is_away = keeper, True

    @property
    def reference(self) -> bytes:
        """What another process needs to open it."""
        return make_reference(self._kind, self.nbytes, self.path)

    @property
    def is_view(self) -> bool:
        """Whether what `view` returns shares the file's memory, so that to keep the segment costs nothing."""
        return bool(self.path) and self.nbytes >= MAP_BYTES and self._kind == MEMORY

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
                memory = _open_anywhere(self.store, self.path, self.nbytes, self._kind)
            except (OSError, ValueError) as error:
                if self._rest is None or is_from_handler(error):  # else the pool has ended in this moment
                    raise
            else:
                if isinstance(memory, memoryview):
                    memory.obj.segment = self  # type: ignore[attr-defined]  # which stays as long as that
                return memory
        return self._rest if is_last or self._kind == BYTES else bytearray(self._rest)

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
                self._twin = map_shared(os.path.join(self.store.run_directory, self.path), self.nbytes)
        except OSError as error:  # the pool has ended, or there are too many mappings
            if is_from_handler(error):
                raise
            return False
        return is_same(view, self._twin, self.nbytes, self._digests)

    def spoil(self) -> None:
        """Somebody may look at it even when it is over, so its file must not be used again."""
        self._right.is_clean = False

    def outlive_pool(self) -> None:
        """The pool ends, and its files with it: keep the content."""
        if self.path and not self.is_away:
            self._rest = _open_anywhere(self.store, self.path, self.nbytes, self._kind)
            self._right.path = ""

    def give_away(self) -> None:
        """Somebody else has the reference, and the segment with it."""
        self._right.path = ""


class SegmentStore:
    """Makes the segments of one process in one pool.

    Args:
        run_directory: of the pool.
        maker: the first part of the names of its files, unique in the pool.
    """

    def __init__(self, run_directory: str, maker: str) -> None:
        self.run_directory = run_directory
        self.pid = os.getpid()
        self._maker = maker
        self._numbers = itertools.count(1)
        self._shm = os.path.join(run_directory, "shm")
        self._free = FreeFiles(self._shm, maker)
        self._is_in_memory = is_in_memory(run_directory)
        self.mappings = Mappings()
        self._segments: weakref.WeakValueDictionary[str, Segment] = weakref.WeakValueDictionary()
        #: By address, size and kind of the memory that they were made of.
        self._sources: weakref.WeakValueDictionary[tuple[int, int, int], Segment] = weakref.WeakValueDictionary()

    def share(self, buffer: Buffer) -> Segment:
        """Return a segment with this content: an old one, if this memory was shared before and has not changed.

        So an object that is an argument of many calls is there once. To find that out, all of it is read (it takes a
        fraction of the time of another copy); of a `bytes` object nothing.
        """
        view = memoryview(buffer).cast("B")
        source = address(view), view.nbytes, _kind_of(view)
        known = self._sources.get(source)
        if known is not None and known.path and known.holds(view):
            return known
        segment = self.write(view)
        if source[2] == BYTES:
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
        is_again = self._free.claim(view.nbytes, os.path.join(self._shm, name))
        if is_again or self._free.leave_room(view.nbytes):
            try:
                return self._fill(f"shm/{name}", view, kind, is_again)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        self._say_once(
            ".full",
            "shared memory (%s) is full: large arguments and results go through files in %s now, which is slower; hold "
            "fewer of them at a time, or have the system's shared memory made larger",
            os.path.realpath(self._shm),
            os.path.join(self.run_directory, "spill"),
        )
        return self._fill(f"spill/{name}", view, kind)

    def warn_of(self, error: OSError) -> None:
        """A buffer could not be written, and goes along in messages."""
        if os.path.isdir(self._free.directory):  # else the pool has ended, and will say so
            self._say_once(".failed", "large arguments and results are copied from process to process: %s", error)

    def adopt(self, reference: Buffer) -> Segment:
        """Take over a segment that another process has told of."""
        kind, nbytes, path = read_reference(reference)
        return self._noted(Segment(self, path, nbytes, kind))

    def adopt_kept(self, reference: Buffer, keeper: Keeper) -> Segment:
        """Take over a segment that stays at its node, on another host."""
        kind, nbytes, path = read_reference(reference)
        segment = Segment(self, path, nbytes, kind)
        segment.stay_away(keeper)
        return self._noted(segment)

    def outlive_pool(self) -> None:
        """The pool ends: keep the content of what is still held here."""
        for segment in list(self._segments.values()):
            try:
                segment.outlive_pool()
            except (OSError, EOFError, ValueError) as error:
                log.warning("a result of %d bytes is lost with its pool: %s", segment.nbytes, error)
        self.mappings.close()

    def sweep(self, prefix: str) -> None:
        """Remove the segments of makers that have died, but for those that are held here."""
        segment_files.sweep(self.run_directory, prefix, self._segments)

    def release(self, path: str, nbytes: int, is_clean: bool) -> None:
        """A segment of this process is over: have its file used again if that is safe and there are not too many."""
        full_path = os.path.join(self.run_directory, path)
        if not (is_clean and path.startswith("shm/") and self._free.give(full_path, nbytes)):
            remove(located(self.run_directory, path), has_viewers=not is_clean)

    def _noted(self, segment: Segment) -> Segment:
        self._segments[segment.path] = segment
        return segment

    def _fill(self, path: str, view: memoryview, kind: int, is_again: bool = False) -> Segment:
        full_path = os.path.join(self.run_directory, path)
        if not (is_again and self._write_over(full_path, view)):
            write_file(full_path, view)
        return self._noted(Segment(self, path, view.nbytes, kind))

    def _write_over(self, path: str, view: memoryview) -> bool:
        """Write to a file that is used again through a mapping; False if it must be written as a new one is."""
        if view.nbytes < MAP_BYTES or not self._is_in_memory:
            return False
        try:
            return self.mappings.write(path, view)
        except BaseException:
            remove(path)
            raise

    def _say_once(self, name: str, text: str, *values: object) -> None:
        """Warn of something, once for the whole pool as far as that can be told."""
        try:
            os.close(os.open(os.path.join(self.run_directory, "spill", name), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        except OSError as error:
            log.debug("%s cannot be made: %s", name, error)
        log.warning(text, *values)


def _kind_of(view: memoryview) -> int:
    return BYTES if type(view.obj) is bytes else MEMORY
