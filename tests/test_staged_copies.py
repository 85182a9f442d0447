"""What a node keeps: brought once, by one of many, whole or not at all."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from hpcpool.staged_copies import Copies


class Source:
    """Gives a file, and counts how often."""

    def __init__(self, data: bytes = b"data", mode: int = 0o400) -> None:
        self.data, self.mode, self.given = data, mode, 0

    def __call__(self, descriptor: int) -> int:
        self.given += 1
        os.write(descriptor, self.data)
        return self.mode


@pytest.fixture
def copies(tmp_path) -> Copies:
    return Copies(str(tmp_path / "kept"))


def test_a_copy_is_brought_once_and_found_by_others(copies, tmp_path):
    source = Source(mode=0o500)
    path, lock = copies.hold("a1", "x.csv", 4, source)
    again, other_lock = Copies(str(tmp_path / "kept")).hold("a1", "x.csv", 4, source)
    assert path == again
    assert Path(path).name == "x.csv"
    assert Path(path).read_bytes() == b"data"
    assert os.stat(path).st_mode & 0o777 == 0o500
    assert source.given == 1
    os.close(lock)
    os.close(other_lock)


@pytest.mark.parametrize("name", ["a1", "a1.lock", "a1.part", ".lock"])
def test_any_name_does(copies, name):
    path, lock = copies.hold("a1", name, 4, Source())
    assert Path(path).read_bytes() == b"data"
    os.close(lock)


def test_of_many_at_once_one_brings_it_and_the_others_wait(tmp_path):
    has_begun, may_end = threading.Event(), threading.Event()
    given: list[int] = []

    def bring(descriptor: int) -> int:
        has_begun.set()
        assert may_end.wait(60)
        given.append(os.write(descriptor, b"data"))
        return 0o400

    def use() -> None:
        path, lock = Copies(str(tmp_path)).hold("a1", "x", 4, bring)
        found.append(Path(path).read_bytes())
        os.close(lock)

    found: list[bytes] = []
    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert has_begun.wait(60)
    assert not list(tmp_path.glob("a1/*")), "nobody sees half of it"
    may_end.set()
    for thread in threads:
        thread.join()
    assert found == [b"data"] * 8
    assert given == [4]


def test_what_fails_leaves_nothing_and_is_tried_again(copies, tmp_path):
    def fail(descriptor: int) -> int:
        os.write(descriptor, b"half")
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        copies.hold("a1", "x", 4, fail)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["a1.lock"]
    path, lock = copies.hold("a1", "x", 4, Source())
    assert Path(path).read_bytes() == b"data"
    os.close(lock)


def test_what_a_killed_process_has_left_is_not_taken_for_the_file(copies, tmp_path):
    (tmp_path / "kept" / "a1.part").write_bytes(b"a longer half of it")
    path, lock = copies.hold("a1", "x", 4, Source())
    assert Path(path).read_bytes() == b"data"
    os.close(lock)


def test_a_copy_that_is_used_is_locked_and_one_that_is_not_can_go(copies, tmp_path):
    path, lock = copies.hold("a1", "x", 4, Source())
    assert dict(copies._unused()) == {}
    os.close(lock)
    ((key, (copy, other_lock)),) = copies._unused()
    assert (key, copy.name, copy.nbytes) == ("a1", "a1", 4)
    with open(tmp_path / "kept" / "a1.lock") as mine, pytest.raises(BlockingIOError):
        fcntl.flock(mine, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(other_lock)
