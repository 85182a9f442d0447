"""Mappings that are kept: what is written goes where it should, nobody sees another's changes, and little is kept."""

from __future__ import annotations

import gc
import os
import sys
import threading

import numpy as np
import pytest

from hpcpool.wire import mappings, segment_files
from hpcpool.wire.mappings import MAP_BYTES, Mappings

PAGE = 4096
SIZE = MAP_BYTES + 3 * PAGE
linux_only = pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="the kernel does not tell of pages")


@pytest.fixture
def kept():
    return Mappings()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    return str(path)


def read(kept, path, nbytes=SIZE):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return kept.read(descriptor, nbytes)
    finally:
        os.close(descriptor)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def address_of(memory):
    return np.frombuffer(memory, np.uint8).ctypes.data


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1, PAGE + 1, SIZE])
def test_what_is_written_is_in_the_file_and_the_rest_stays(nbytes, kept, path):
    for filling in (b"a", b"b"):
        assert kept.write(path, memoryview(filling * nbytes))
        assert content(path) == filling * nbytes + bytes(SIZE - nbytes)


def test_a_file_with_another_name_is_the_same_file(kept, path, monkeypatch):
    kept.write(path, memoryview(b"a" * SIZE))
    os.rename(path, path + ".2")
    monkeypatch.setattr(mappings, "_map_to_write", None)  # it is mapped already
    assert kept.write(path + ".2", memoryview(b"b" * SIZE))
    assert content(path + ".2") == b"b" * SIZE


def test_another_file_of_the_same_name_is_another_file(kept, path):
    kept.write(path, memoryview(b"a" * SIZE))
    os.rename(path, path + ".old")
    with open(path, "wb") as file:
        file.write(bytes(SIZE))
    assert kept.write(path, memoryview(b"b" * SIZE))
    assert content(path) == b"b" * SIZE
    assert content(path + ".old") == b"a" * SIZE


def test_a_file_without_room_is_left_alone(kept, path):
    assert not kept.write(path, memoryview(bytes(SIZE + 1)))
    assert os.path.getsize(path) == SIZE


def test_a_file_that_is_too_large_to_stay_mapped_is_left_alone(kept, path, monkeypatch):
    monkeypatch.setattr(mappings, "_KEPT_BYTES", SIZE - 1)
    assert not kept.write(path, memoryview(b"a"))
    assert content(path) == bytes(SIZE)


def test_what_a_file_has_no_memory_for_yet_is_no_room(kept, path):
    os.truncate(path, 0)
    os.truncate(path, SIZE)  # a hole
    assert not kept.write(path, memoryview(bytes(SIZE)))
    assert os.stat(path).st_blocks == 0


@pytest.mark.parametrize("error", [TimeoutError("alarm"), KeyboardInterrupt()])
def test_what_a_signals_handler_raises_is_not_taken_for_a_lack_of_room(error, kept, path, monkeypatch):
    def interrupted(path):
        raise error

    monkeypatch.setattr(mappings, "_map_to_write", interrupted)
    with pytest.raises(type(error)):
        kept.write(path, memoryview(bytes(SIZE)))


def test_a_file_that_has_grown_is_mapped_anew(kept, path):
    kept.write(path, memoryview(b"a" * SIZE))
    with open(path, "ab") as file:
        file.write(bytes(SIZE))
    assert kept.write(path, memoryview(b"b" * 2 * SIZE))
    assert content(path) == b"b" * 2 * SIZE


# -- reading ----------------------------------------------------------------------------------------------------------


def test_what_is_changed_is_seen_by_nobody_else(kept, path):
    first, second = read(kept, path), read(kept, path)
    first[5] = 1
    assert second[5] == content(path)[5] == 0
    del first, second
    assert bytes(read(kept, path)) == bytes(SIZE)


@linux_only
def test_memory_that_was_only_read_is_lent_again_with_what_is_in_the_file_now(kept, path):
    memory = read(kept, path)
    assert bytes(memory) == bytes(SIZE)
    begin = address_of(memory)
    del memory
    keeper = bytearray(4 * SIZE)  # so that no new mapping is likely to come to lie there
    kept.write(path, memoryview(b"b" * SIZE))
    again = read(kept, path)
    assert address_of(again) == begin
    assert bytes(again) == b"b" * SIZE
    del keeper


@linux_only
@pytest.mark.parametrize("place", [0, SIZE // 2, SIZE - 1])
def test_memory_that_was_written_to_is_not_kept(place, kept, path):
    memory = read(kept, path)
    memory[place] = 7
    del memory
    assert not kept._read


@linux_only
def test_as_long_as_anybody_looks_at_it_memory_is_not_lent_again(kept, path):
    memory = read(kept, path)
    part = np.frombuffer(memory, np.uint8)[100:]
    del memory
    assert not kept._read
    begin = part.ctypes.data
    other = read(kept, path)
    assert abs(address_of(other) - begin) >= SIZE - 100
    del part
    assert kept._read


@linux_only
def test_less_of_a_file_is_lent_from_the_same_mapping_and_more_is_not(kept, path):
    read(kept, path)
    (mapped,) = kept._read.values()
    less = read(kept, path, MAP_BYTES)
    assert less.nbytes == MAP_BYTES
    assert less.obj.mapped is mapped
    del less
    with open(path, "ab") as file:
        file.write(b"more")
    more = read(kept, path, SIZE + 4)
    assert bytes(more[-4:]) == b"more"
    assert more.obj.mapped is not mapped


def test_where_the_kernel_does_not_tell_of_pages_nothing_read_is_kept(kept, path, monkeypatch):
    monkeypatch.setattr(mappings, "_PAGEMAP", path + ".no")
    assert bytes(read(kept, path)) == bytes(SIZE)
    assert not kept._read


def test_more_than_a_file_holds_is_refused(kept, path):
    with pytest.raises(ValueError, match="has only"):
        read(kept, path, SIZE + 1)


class Writer:
    """Writes to memory when it goes."""

    def __init__(self, memory):
        self.memory = memory
        self.itself = self

    def __del__(self):
        self.memory[0] = 7


def test_what_is_in_a_cycle_with_memory_writes_to_no_memory_of_another(kept, path):
    Writer(read(kept, path))
    gc.collect()
    assert not kept._read
    assert bytes(read(kept, path)) == bytes(SIZE)


def test_memory_that_was_interrupted_while_it_was_lent_makes_no_noise(monkeypatch):
    noise: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", noise.append)
    mappings._lent_type(SIZE).from_buffer(bytearray(SIZE))
    assert noise == []


def test_a_forked_child_keeps_no_mapping(kept, path):
    kept.write(path, memoryview(b"a" * SIZE))
    memory = read(kept, path)
    pid = os.fork()
    if pid == 0:
        held = -1
        try:
            del memory
            held = len(kept._written) + len(kept._read)
        finally:
            os._exit(held)
    assert os.waitpid(pid, 0)[1] == 0
    assert kept._written


# -- how much is kept -------------------------------------------------------------------------------------------------


def new_files(tmp_path, count):
    for number in range(count):
        path = tmp_path / str(number)
        path.write_bytes(bytes(SIZE))
        yield str(path)


def test_the_longest_unused_go_when_there_are_too_many_files(kept, tmp_path):
    paths = list(new_files(tmp_path, mappings._KEPT_FILES + 1))
    for path in paths:
        kept.write(path, memoryview(bytes(SIZE)))
    assert [mapped.key[1] for mapped in kept._written.values()] == [os.stat(path).st_ino for path in paths[1:]]


def test_the_longest_unused_go_when_there_are_too_many_bytes(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(mappings, "_KEPT_BYTES", 2 * SIZE)
    paths = list(new_files(tmp_path, 3))
    for path in (paths[0], paths[1], paths[0], paths[2]):
        kept.write(path, memoryview(bytes(SIZE)))
    assert {mapped.key[1] for mapped in kept._written.values()} == {os.stat(paths[n]).st_ino for n in (0, 2)}


def test_what_is_larger_than_all_that_may_be_kept_is_not(kept, path, monkeypatch):
    monkeypatch.setattr(mappings, "_KEPT_BYTES", SIZE - 1)
    assert bytes(read(kept, path)) == bytes(SIZE)
    assert not kept._read


@linux_only
def test_files_that_have_gone_are_let_go_of(kept, tmp_path):
    first, second = new_files(tmp_path, 2)
    for path in (first, second):
        kept.write(path, memoryview(bytes(SIZE)))
        read(kept, path)
        if path == first:
            segment_files.remove(first)
    assert [mapped.key[1] for held in (kept._written, kept._read) for mapped in held.values()] == [
        os.stat(second).st_ino
    ] * 2


@linux_only
def test_no_descriptor_is_left(kept, path):
    before = len(os.listdir("/proc/self/fd"))
    kept.write(path, memoryview(bytes(SIZE)))
    memory = read(kept, path)
    with pytest.raises(ValueError, match="has only"):
        read(kept, path, SIZE + 1)
    kept.close()
    del memory
    assert not kept._read, "what comes back later is not kept either"
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_threads_read_and_write_at_once(kept, tmp_path):
    paths = list(new_files(tmp_path, 4))
    failures: list[object] = []
    own = [str(tmp_path / f"own{number}") for number in range(4)]
    for path in own:
        with open(path, "wb") as file:
            file.write(bytes(SIZE))

    def work(number):
        try:
            for turn in range(50):
                filling = bytes([turn]) * SIZE
                assert kept.write(own[number], memoryview(filling))
                assert read(kept, own[number]) == filling
                memory = read(kept, paths[turn % 4])
                memory[turn] = 1
                assert sum(memory) == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
