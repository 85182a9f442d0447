"""Mappings of segment files, kept for the next segment in the same file.

Files are used again (see `wire.segments`), and what a large segment then costs is mostly mapping: 64 MiB take 6 ms to
copy where the pages are mapped, and 11 ms to touch and unmap where they are not. So a process keeps some mappings of
the files that it has written and read, at most `_KEPT_BYTES` of each sort, and lets go of those whose file has gone as
soon as it maps another.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import os
import pickle
import sys
import weakref
from typing import Any

from hpcpool.errors import is_from_handler
from hpcpool.wire.memory import address, copy
from hpcpool.wire.references import is_last_reference

log = logging.getLogger("hpcpool")

#: From this size on a segment is mapped; below, reading and writing it costs less than the page faults.
MAP_BYTES = 512 * 1024
#: Most bytes and files of each sort that are kept.
_KEPT_BYTES = 128 * 1024 * 1024
_KEPT_FILES = 16
#: Linux maps all pages at once, which is faster than one by one.
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
#: A byte of st_blocks, which counts in these units whatever the file system's are.
_BLOCK_BYTES = 512
_PAGEMAP = "/proc/self/pagemap"
_PAGEMAP_ENTRY_BYTES = 8
#: The highest bytes of entries of /proc/self/pagemap (https://docs.kernel.org/admin-guide/mm/pagemap.html) for pages
#: that are the file's: not there (bit 63), or there and of a file (bit 61); in no case swapped (bit 62), as only memory
#: of one's own is.
_FILE_PAGES = bytes(high for high in range(256) if not high & 0x40 and (not high & 0x80 or high & 0x20))

Buffer = Any  # bytes, bytearray or memoryview

#: A forked child lets go of them: it may outlive the pool.
_all: weakref.WeakSet[Mappings] = weakref.WeakSet()


class _Mapped:
    """A file that is mapped as a whole."""

    __slots__ = ("key", "memory")

    def __init__(self, descriptor: int, flags: int, status: os.stat_result) -> None:
        """Map an open file, of which `status` tells; the descriptor stays the caller's."""
        self.memory = mmap.mmap(descriptor, status.st_size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
        self.key = _key(status)

    @property
    def has_gone(self) -> bool:
        """Whether the file is not the one any more that was mapped: who removes one makes it larger (see `remove`)."""
        return self.memory.size() != len(self.memory)


class Mappings:
    """The mappings that a process keeps. All threads may use it at any time, and so may finalizers.

    There is no lock: who wants a mapping takes it out, which one operation of a dict does, and puts it back.
    """

    def __init__(self) -> None:
        self._written: dict[tuple[int, int], _Mapped] = {}
        self._read: dict[tuple[int, int], _Mapped] = {}
        self._is_closed = False
        _all.add(self)

    def write(self, path: str, view: memoryview) -> bool:
        """Write over the beginning of a file of the caller's alone.

        Returns:
            False, with nothing done, if the file has not so much room, is too large to stay mapped, or cannot be.
        """
        try:
            mapped = self._to_write(path, view.nbytes)
        except OSError as error:
            if is_from_handler(error):
                raise
            log.debug("%s is not mapped: %s", path, error)  # too many mappings or descriptors
            return False
        if mapped is None:
            return False
        copy(mapped.memory, view, view.nbytes)
        self._keep(self._written, mapped)
        return True

    def _to_write(self, path: str, nbytes: int) -> _Mapped | None:
        status = os.stat(path)
        # What a file does not hold yet, a full file system could refuse: with a signal, where it is mapped.
        if min(status.st_size, status.st_blocks * _BLOCK_BYTES) < nbytes or status.st_size > _KEPT_BYTES:
            return None
        mapped = self._written.pop(_key(status), None)
        if mapped is None or len(mapped.memory) < nbytes:
            _let_go_of_gone(self._written)
            mapped = _map_to_write(path)
        return mapped

    def read(self, descriptor: int, nbytes: int) -> memoryview:
        """Return the beginning of a file, as memory of the caller's own.

        Its `obj` is an object that lives as long as anybody looks at the memory.

        Raises OSError or ValueError if it cannot be mapped.
        """
        status = os.fstat(descriptor)
        mapped = self._read.pop(_key(status), None)
        if mapped is None or len(mapped.memory) < nbytes:
            _let_go_of_gone(self._read)
            if status.st_size < nbytes:
                raise ValueError(f"a segment of {nbytes} bytes has only {status.st_size}")
            mapped = _Mapped(descriptor, mmap.MAP_PRIVATE, status)
        lent = _lent_type(nbytes).from_buffer(mapped.memory)
        lent.mapped, lent.mappings = mapped, self
        return pickle.PickleBuffer(lent).raw()  # as plain bytes, which ctypes has no word for

    def come_back(self, mapped: _Mapped) -> None:
        """Nobody looks at memory any more that was lent: keep its mapping if nobody has written to it either."""
        if len(mapped.memory) <= _KEPT_BYTES and not mapped.has_gone and _is_as_in_file(mapped.memory):
            self._keep(self._read, mapped)

    def close(self) -> None:
        """Keep none any more."""
        self._is_closed = True
        self._written.clear()
        self._read.clear()

    def _keep(self, kept: dict[tuple[int, int], _Mapped], mapped: _Mapped) -> None:
        kept[mapped.key] = mapped
        while len(kept) > _KEPT_FILES or sum(len(other.memory) for other in list(kept.values())) > _KEPT_BYTES:
            kept.pop(next(iter(list(kept)), mapped.key), None)  # the longest unused
        if self._is_closed:
            kept.clear()


class _Lent:
    """Memory that is lent: gives its mapping back when nobody looks at it any more."""

    mapped: _Mapped
    #: None until it is lent: Ctrl-C may strike before.
    mappings: Mappings | None = None
    #: Gets an entry then.
    returned: list[None] | None = None
    #: What lives as long as somebody looks (the segment): it goes after `__del__`, when the mapping is back.
    segment: object = None

    def __del__(self) -> None:
        # While the collector takes a cycle apart, what else is in it may still look at the memory, and write to it.
        if self.mappings is None or not is_last_reference(self) or sys.is_finalizing():
            return
        if self.returned is not None:
            self.returned.append(None)
        self.mappings.come_back(self.mapped)


def _close_all() -> None:
    for mappings in list(_all):
        mappings.close()


os.register_at_fork(after_in_child=_close_all)


def _let_go_of_gone(kept: dict[tuple[int, int], _Mapped]) -> None:
    for mapped in list(kept.values()):
        if mapped.has_gone:
            kept.pop(mapped.key, None)


@functools.lru_cache(maxsize=32)
def _lent_type(nbytes: int) -> Any:
    return type("Memory", (_Lent, ctypes.Array), {"_length_": nbytes, "_type_": ctypes.c_ubyte})


def _map_to_write(path: str) -> _Mapped:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _Mapped(descriptor, mmap.MAP_SHARED | _POPULATE, os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _is_as_in_file(memory: mmap.mmap) -> bool:
    """Say whether no page of a private mapping has been written to; False where that cannot be found out."""
    first = address(memory) // mmap.PAGESIZE
    nbytes = -(-len(memory) // mmap.PAGESIZE) * _PAGEMAP_ENTRY_BYTES
    try:
        descriptor = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
        try:
            entries = os.pread(descriptor, nbytes, first * _PAGEMAP_ENTRY_BYTES)
        finally:
            os.close(descriptor)
    except OSError:  # no Linux, or one that hides it
        return False
    highest = entries[_HIGHEST_BYTE::_PAGEMAP_ENTRY_BYTES]
    return len(entries) == nbytes and not highest.translate(None, _FILE_PAGES)


_HIGHEST_BYTE = _PAGEMAP_ENTRY_BYTES - 1 if sys.byteorder == "little" else 0


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
