"""Where a buffer lies in memory, to compare it and to copy into it: what CPython tells C programs only.

Other threads run meanwhile, and what is large is done by several: one core cannot read as fast as memory gives.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any


class _Buffer(ctypes.Structure):
    """`Py_buffer` (https://docs.python.org/3/c-api/buffer.html#c.Py_buffer)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_Buffer)]
_release_buffer.restype = None
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memmove = ctypes.CDLL(None).memmove
_memmove.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memmove.restype = None  # the address is known
#: From this size on threads are worth their start (some 50 microseconds each, if no other thread computes).
_LARGE_BYTES = 16 * 1024 * 1024
#: What a thread takes at once: little enough that all end at nearly the same time.
_PIECE_BYTES = 4 * 1024 * 1024
#: Four read as fast as the memory of most machines gives.
_MOST_THREADS = 4
_PLAIN = 0  # PyBUF_SIMPLE: contiguous bytes, perhaps read-only


def address(buffer: Any) -> int:
    """Return where the bytes of a contiguous buffer begin; it stays there as long as somebody holds the buffer."""
    found = _Buffer()
    _get_buffer(buffer, ctypes.byref(found), _PLAIN)
    try:
        return found.buf or 0
    finally:
        _release_buffer(ctypes.byref(found))


def is_same(first: Any, second: Any, nbytes: int, digests: dict[int, bytes]) -> bool:
    """Say whether the first bytes of two buffers are equal; both must have so many.

    Args:
        first: what may have changed since.
        second: what never changes.
        nbytes: how many bytes.
        digests: of pieces of the second, by place; those of the pieces that are found equal are added. A piece with a
            digest is not read again, as memory is what takes the time. Its 128 bits tell contents apart that nobody has
            made to have the same.
    """
    # Here, as most processes never compare. From xxhash 4.0 on other threads run meanwhile.
    from xxhash import xxh3_128_digest as digest_of

    begins = address(first), address(second)
    views = memoryview(first).cast("B"), memoryview(second).cast("B")

    def is_equal(place: int, count: int) -> bool:
        known = digests.get(place)
        if known is not None:
            return digest_of(views[0][place : place + count]) == known
        if _memcmp(begins[0] + place, begins[1] + place, count):
            return False
        digests[place] = digest_of(views[1][place : place + count])
        return True

    return _each_piece(is_equal, nbytes, (first, second))


def copy(target: Any, source: Any, nbytes: int) -> None:
    """Copy the first bytes of a buffer to another; both must have so many, and the target must be writable."""
    begins = address(target), address(source)

    def move(place: int, count: int) -> bool:
        _memmove(begins[0] + place, begins[1] + place, count)
        return True

    if not _each_piece(move, nbytes, (target, source)):  # a helper has failed, for lack of memory perhaps
        move(0, nbytes)


def _each_piece(do: Callable[[int, int], bool], nbytes: int, buffers: tuple[Any, Any]) -> bool:
    """Do something (with place, bytes) for all pieces of so many bytes; no more after one that returned False."""
    if nbytes < _LARGE_BYTES:
        return do(0, nbytes)
    pieces = collections.deque(range(0, nbytes, _PIECE_BYTES))
    count = len(pieces)
    done: list[int] = []
    # The memory stays where it is while a thread looks at it, even if this one is interrupted and does not wait for it.
    held = [memoryview(buffer) for buffer in buffers]

    def take_pieces(_held: object = held) -> None:
        with contextlib.suppress(IndexError):  # none is left
            while True:
                piece = pieces.popleft()
                if not do(piece, min(_PIECE_BYTES, nbytes - piece)):
                    pieces.clear()
                    return
                done.append(piece)

    helpers = [
        threading.Thread(target=take_pieces, name="hpcpool memory", daemon=True)
        for _ in range(1, min(_MOST_THREADS, _cores()))
    ]
    try:
        with contextlib.suppress(RuntimeError):  # no more threads: at the end of the program, or by a limit
            for helper in helpers:
                helper.start()
        take_pieces()
    finally:
        pieces.clear()
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
    return len(done) == count


def _cores() -> int:
    # Of this process, whatever PYTHON_CPU_COUNT says: that is how many workers are wanted.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
