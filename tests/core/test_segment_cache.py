from __future__ import annotations

import random

from hpcpool.core.segment_cache import SegmentCache


def test_a_segment_goes_with_the_first_task_only():
    cache = SegmentCache()
    assert cache.leased(1, [("a", 10), ("b", 10)]) == ["a", "b"]
    assert cache.leased(2, [("b", 10), ("c", 10)]) == ["c"]


def test_a_segment_that_could_not_be_sent_goes_with_the_next_task():
    cache = SegmentCache(idle_limit=0)
    assert cache.leased(1, [("a", 10)]) == ["a"]
    cache.lacking("a")
    assert cache.leased(2, [("a", 10)]) == ["a"]
    assert cache.leased(3, [("a", 10)]) == []
    assert [cache.released(task) for task in (1, 2, 3)] == [[], [], ["a"]]


def test_a_segment_that_a_task_refers_to_twice_goes_once_and_is_released_once():
    cache = SegmentCache(idle_limit=0)
    assert cache.leased(1, [("a", 10), ("a", 10)]) == ["a"]
    assert cache.released(1) == ["a"]


def test_what_no_task_refers_to_stays_up_to_the_limit_and_the_longest_unused_goes_first():
    cache = SegmentCache(idle_limit=20)
    for task, path in enumerate("abc"):
        cache.leased(task, [(path, 10)])
    assert cache.released(0) == []
    assert cache.released(1) == []
    assert cache.leased(3, [("a", 10)]) == []  # used again
    assert cache.released(3) == []
    assert cache.released(2) == ["b"]
    assert cache.leased(4, [("b", 10)]) == ["b"]


def test_what_a_task_refers_to_is_never_dropped():
    cache = SegmentCache(idle_limit=0)
    cache.leased(1, [("a", 10**9)])
    cache.leased(2, [("a", 10**9)])
    assert cache.released(1) == []
    assert cache.released(2) == ["a"]


def test_a_task_without_segments_or_that_is_not_there_releases_nothing():
    cache = SegmentCache(idle_limit=0)
    assert cache.released(1) == []
    assert cache.leased(1, []) == []
    assert cache.released(1) == []


def test_a_node_has_exactly_what_it_was_sent_and_has_not_been_told_to_drop():
    rng = random.Random(1)
    cache = SegmentCache(idle_limit=100)
    node: dict[str, int] = {}
    running: dict[int, dict[str, int]] = {}
    for task in range(5000):
        wanted = {f"s{rng.randrange(30)}": 0 for _ in range(rng.randrange(4))}
        wanted = {path: 5 + int(path[1:]) for path in wanted}
        for path in cache.leased(task, wanted.items()):
            assert path not in node
            node[path] = wanted[path]
        assert wanted.keys() <= node.keys()
        running[task] = wanted
        while len(running) > rng.randrange(8):
            for path in cache.released(ended := rng.choice(list(running))):
                del node[path]
            del running[ended]
        used = {path for paths in running.values() for path in paths}
        assert used <= node.keys()
        assert sum(nbytes for path, nbytes in node.items() if path not in used) <= 100
