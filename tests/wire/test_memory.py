"""Whether two buffers hold the same bytes, in one piece and in many."""

from __future__ import annotations

import gc
import random
import threading

import pytest

from hpcpool.wire import memory

LARGE = memory._LARGE_BYTES + 1000


@pytest.mark.parametrize("nbytes", [0, 1, 1000, LARGE])
def test_equal_buffers_are_the_same(nbytes: int):
    data = b"ab" * nbytes
    assert memory.is_same(bytearray(data), data, nbytes, {})


@pytest.mark.parametrize("nbytes", [1, 1000, LARGE])
def test_each_byte_counts_and_none_behind_them(nbytes: int):
    first, second = bytearray(nbytes + 1), bytearray(nbytes + 1)
    second[nbytes] = 1
    assert memory.is_same(first, second, nbytes, {})
    for place in {0, nbytes // 2, nbytes - 1}:
        second[place] = 1
        assert not memory.is_same(first, second, nbytes, {})
        second[place] = 0
    assert memory.is_same(first, second, nbytes, {})


@pytest.mark.parametrize("place", range(0, LARGE, memory._PIECE_BYTES))
def test_each_piece_of_a_large_buffer_is_compared(place: int):
    first = bytearray(LARGE)
    second = bytearray(first)
    second[place] = 1
    assert not memory.is_same(first, second, LARGE, {})


@pytest.mark.parametrize("nbytes", [1, 1000, LARGE])
def test_what_is_known_is_not_read_again_and_each_byte_of_the_other_still_counts(
    nbytes: int, monkeypatch: pytest.MonkeyPatch
):
    first, second = bytearray(nbytes), bytearray(nbytes)
    digests: dict[int, bytes] = {}
    assert memory.is_same(first, second, nbytes, digests)
    monkeypatch.setattr(memory, "_memcmp", lambda *_: pytest.fail("compared again"))
    second[:] = b"x" * nbytes
    assert memory.is_same(first, second, nbytes, digests)
    for place in {0, nbytes // 2, nbytes - 1}:
        first[place] = 1
        assert not memory.is_same(first, second, nbytes, digests)
        first[place] = 0
    assert memory.is_same(first, second, nbytes, digests)


@pytest.mark.parametrize("place", range(0, LARGE, memory._PIECE_BYTES))
def test_nothing_is_known_of_a_piece_that_is_not_the_same(place: int):
    first, second = bytearray(LARGE), bytearray(LARGE)
    digests: dict[int, bytes] = {}
    first[place] = 1
    assert not memory.is_same(first, second, LARGE, digests)
    assert place not in digests
    second[place] = 1
    assert memory.is_same(first, second, LARGE, digests)
    first[place] = 2
    assert not memory.is_same(first, second, LARGE, digests)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_cores", lambda: 4)


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hpcpool memory"]


@pytest.mark.usefixtures("four_cores")
def test_several_threads_compare_and_none_is_left(monkeypatch: pytest.MonkeyPatch):
    seen: set[int] = set()
    together = threading.Barrier(4)
    compare = memory._memcmp

    def noting(*arguments: int) -> int:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            together.wait(60.0)
        return int(compare(*arguments))

    monkeypatch.setattr(memory, "_memcmp", noting)
    assert memory.is_same(bytes(LARGE), bytes(LARGE), LARGE, {})
    assert len(seen) == 4
    assert helpers() == []


@pytest.mark.usefixtures("four_cores")
def test_without_more_threads_it_is_compared_by_one(monkeypatch: pytest.MonkeyPatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    other = bytearray(LARGE)
    assert memory.is_same(bytes(LARGE), other, LARGE, {})
    other[-1] = 1
    assert not memory.is_same(bytes(LARGE), other, LARGE, {})


@pytest.mark.usefixtures("four_cores")
def test_an_interrupt_leaves_no_thread_at_memory_that_is_freed(monkeypatch: pytest.MonkeyPatch):
    """It comes when the second helper has just begun, and again while the first is waited for."""
    gate, looking = threading.Event(), threading.Semaphore(0)
    compare, start = memory._memcmp, threading.Thread.start
    begun: list[threading.Thread] = []

    def waiting(*arguments: int) -> int:
        looking.release()
        gate.wait(60.0)
        return int(compare(*arguments))

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        assert looking.acquire(timeout=60.0)
        begun.append(thread)
        if len(begun) == 2:
            raise KeyboardInterrupt

    def interrupted_again(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "_memcmp", waiting)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    buffer = bytearray(LARGE)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", interrupted_again)
        with pytest.raises(KeyboardInterrupt):
            memory.is_same(buffer, bytes(LARGE), LARGE, {})
    gc.collect()
    with pytest.raises(BufferError):  # they still look at it
        buffer.clear()
    gate.set()
    for thread in begun:
        thread.join()
    gc.collect()
    buffer.clear()


@pytest.mark.usefixtures("four_cores")
def test_a_helper_that_fails_makes_no_buffers_the_same(monkeypatch: pytest.MonkeyPatch):
    def failing(*_: int) -> int:
        if threading.current_thread().name == "hpcpool memory":
            failed.set()
            raise MemoryError
        failed.wait(60.0)
        return 0

    failed = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(memory, "_memcmp", failing)
    assert not memory.is_same(bytes(LARGE), bytes(LARGE), LARGE, {})


@pytest.mark.parametrize("nbytes", [0, 1, 1000, LARGE])
def test_so_many_bytes_are_copied_and_no_more(nbytes: int):
    source = random.Random(nbytes).randbytes(nbytes + 1)
    target = bytearray(nbytes + 1)
    memory.copy(target, source, nbytes)
    assert target == source[:nbytes] + b"\0"


@pytest.mark.usefixtures("four_cores")
def test_what_a_helper_has_not_copied_is_copied_all_the_same(monkeypatch: pytest.MonkeyPatch):
    def failing(*places: int) -> None:
        if threading.current_thread().name == "hpcpool memory":
            failed.set()
            raise MemoryError
        failed.wait(60.0)
        move(*places)

    failed = threading.Event()
    move = memory._memmove
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(memory, "_memmove", failing)
    source, target = random.Random(1).randbytes(LARGE), bytearray(LARGE)
    memory.copy(target, source, LARGE)
    assert target == source
    assert helpers() == []
