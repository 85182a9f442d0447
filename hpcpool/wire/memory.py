"""Where a buffer lies in memory, and whether two hold the same bytes: what CPython tells C programs only."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import threading
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


def is_same(first: Any, second: Any, nbytes: int) -> bool:
    """Say whether the first bytes of two buffers are equal; both must have so many.

    Other threads run meanwhile. A large buffer is compared by several: one core cannot read as fast as memory gives.
    """
    begins = (address(first), address(second))
    if nbytes < _LARGE_BYTES:
        return not _memcmp(*begins, nbytes)
    pieces = collections.deque(range(0, nbytes, _PIECE_BYTES))
    count = len(pieces)
    equal: list[int] = []
    # The memory stays where it is while a thread looks at it, even if this one is interrupted and does not wait for it.
    held = (memoryview(first), memoryview(second))

    def compare(_held: object = held) -> None:
        with contextlib.suppress(IndexError):  # none is left
            while True:
                piece = pieces.popleft()
                if _memcmp(*(begin + piece for begin in begins), min(_PIECE_BYTES, nbytes - piece)):
                    pieces.clear()
                    return
                equal.append(piece)

    helpers = [
        threading.Thread(target=compare, name="hpcpool compare", daemon=True)
        for _ in range(1, min(_MOST_THREADS, _cores()))
    ]
    try:
        with contextlib.suppress(RuntimeError):  # no more threads: at the end of the program, or by a limit
            for helper in helpers:
                helper.start()
        compare()
    finally:
        pieces.clear()
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
    return len(equal) == count


def _cores() -> int:
    # Of this process, whatever PYTHON_CPU_COUNT says: that is how many workers are wanted.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
