"""Whether two buffers hold the same bytes, in one piece and in many."""

from __future__ import annotations

import threading

import pytest

from hpcpool.wire import memory

LARGE = memory._LARGE_BYTES + 1000


@pytest.mark.parametrize("nbytes", [0, 1, 1000, LARGE])
def test_equal_buffers_are_the_same(nbytes: int):
    data = b"ab" * nbytes
    assert memory.is_same(bytearray(data), data, nbytes)


@pytest.mark.parametrize("nbytes", [1, 1000, LARGE])
def test_each_byte_counts_and_none_behind_them(nbytes: int):
    first, second = bytearray(nbytes + 1), bytearray(nbytes + 1)
    second[nbytes] = 1
    assert memory.is_same(first, second, nbytes)
    for place in {0, nbytes // 2, nbytes - 1}:
        second[place] = 1
        assert not memory.is_same(first, second, nbytes)
        second[place] = 0
    assert memory.is_same(first, second, nbytes)


@pytest.mark.parametrize("place", range(0, LARGE, memory._PIECE_BYTES))
def test_each_piece_of_a_large_buffer_is_compared(place: int):
    first = bytearray(LARGE)
    second = bytearray(first)
    second[place] = 1
    assert not memory.is_same(first, second, LARGE)


def test_no_thread_is_left():
    before = threading.active_count()
    assert memory.is_same(bytes(LARGE), bytes(LARGE), LARGE)
    assert threading.active_count() == before


def test_without_more_threads_it_is_compared_by_one(monkeypatch: pytest.MonkeyPatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    other = bytearray(LARGE)
    assert memory.is_same(bytes(LARGE), other, LARGE)
    other[-1] = 1
    assert not memory.is_same(bytes(LARGE), other, LARGE)
