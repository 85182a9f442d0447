from __future__ import annotations

import pytest

from hpcpool.core.kept_segments import Fetch, KeptSegments

A, B = b"a", b"b"


def kept(window_bytes: int = 100, **made: tuple[bytes, int]) -> KeptSegments:
    """Segments by their paths: node and bytes of each."""
    segments = KeptSegments(window_bytes)
    for path, (node, nbytes) in made.items():
        segments.made(node, path, nbytes)
    return segments


def test_nothing_is_fetched_that_nobody_wants():
    segments = kept(x=(A, 10))
    assert segments.fetches() == []
    assert segments.holds(A)
    assert not segments.holds(B)


def test_a_segment_is_fetched_once_however_many_want_it():
    segments = kept(x=(A, 10))
    segments.want("x")
    segments.want("x", task=7)
    segments.want("x", task=3)
    assert segments.fetches() == [Fetch(A, ["x"])]
    segments.want("x", task=9)
    assert segments.fetches() == []
    assert segments.answered(A, "x")
    assert segments.arrived("x") == [7, 3, 9]
    segments.want("x", task=5)
    assert segments.fetches() == []
    assert not segments.holds(A)


def test_a_task_lacks_what_is_at_another_node_only():
    segments = kept(x=(A, 10), y=(B, 10))
    assert segments.lacking(A, ["x", "y", "the client's"]) == ["y"]
    assert segments.lacking(B, ["x", "y"]) == ["x"]
    assert segments.lacking(b"near", ["x", "y"]) == ["x", "y"]
    segments.arrived("x")
    assert segments.lacking(B, ["x", "y"]) == []
    assert segments.is_at(A, "x"), "tasks there go on reading it"


def test_only_so_many_bytes_of_one_node_are_on_their_way_and_a_larger_one_alone():
    segments = kept(100, u=(A, 60), v=(A, 40), w=(A, 500), x=(A, 1), y=(B, 100))
    for path in "uvwxy":
        segments.want(path)
    assert segments.fetches() == [Fetch(A, ["u", "v"]), Fetch(B, ["y"])]
    assert segments.answered(A, "u")
    assert segments.fetches() == []
    assert segments.answered(A, "v")
    assert segments.fetches() == [Fetch(A, ["w"])]
    assert segments.answered(A, "w")
    assert segments.fetches() == [Fetch(A, ["x"])]


def test_what_was_let_go_of_is_not_fetched_and_its_node_is_told_once():
    segments = kept(x=(A, 10), y=(A, 10), z=(B, 10))
    segments.want("x")
    assert segments.let_go(["x", "z", "unknown"]) == {A: ["x"], B: ["z"]}
    assert segments.fetches() == []
    assert segments.let_go(["x"]) == {}
    assert segments.let_go(["y"]) == {A: ["y"]}
    assert not segments


def test_what_was_let_go_of_on_its_way_leaves_room_when_it_has_come():
    segments = kept(100, x=(A, 100), y=(A, 100))
    segments.want("x")
    segments.want("y")
    segments.fetches()
    segments.let_go(["x"])
    assert not segments.is_known("x")
    assert segments.answered(A, "x")
    assert segments.fetches() == [Fetch(A, ["y"])]


def test_an_answer_that_nobody_has_asked_for_is_none():
    segments = kept(x=(A, 10))
    assert not segments.answered(A, "x")
    segments.want("x")
    segments.fetches()
    assert not segments.answered(B, "x")
    assert segments.answered(A, "x")
    assert not segments.answered(A, "x")


def test_with_a_node_goes_what_was_only_there():
    segments = kept(x=(A, 10), y=(A, 10), z=(B, 10))
    segments.arrived("x")
    segments.want("y", task=4)
    assert segments.node_lost(A) == ["y"]
    assert segments.lost("y", "it died") == [4]
    assert (segments.loss_of("x"), segments.loss_of("y"), segments.loss_of("z")) == ("", "it died", "")
    assert segments.lacking(B, ["x", "y"]) == ["y"]
    segments.want("y", task=5)
    assert segments.fetches() == []
    assert segments.node_lost(A) == []
    assert segments.let_go(["x", "y"]) == {}, "there is nobody to tell"


def test_a_node_that_leaves_holds_nothing_when_all_has_come_or_never_will():
    segments = kept(1000, x=(A, 10), y=(A, 10), z=(B, 10))
    segments.want_all(A)
    segments.want_all(b"unknown")
    assert segments.fetches() == [Fetch(A, ["x", "y"])]
    segments.arrived("x")
    assert segments.holds(A)
    segments.lost("y", "its disk is broken")
    assert not segments.holds(A)


@pytest.mark.parametrize(
    ("paths", "home"), [("xx", A), ("xyz", B), ("xy", A), ("z", B), ("", None), (["the client's"], None)]
)
def test_the_home_of_a_task_has_most_of_what_it_needs(paths, home):
    assert kept(x=(A, 20), y=(B, 15), z=(B, 10)).home_of(paths) == home


def test_a_node_that_has_gone_is_nobodys_home():
    segments = kept(x=(A, 20), y=(B, 15))
    segments.arrived("x")
    segments.node_lost(A)
    assert segments.home_of("xy") == B


def test_of_all_nodes_together_only_so_much_is_on_its_way_and_they_take_turns():
    segments = KeptSegments(window_bytes=100, total_bytes=150)
    for node in (A, B):
        for number in range(3):
            segments.made(node, f"{node.decode()}{number}", 100)
            segments.want(f"{node.decode()}{number}")
    assert segments.fetches() == [Fetch(A, ["a0"])]
    assert segments.fetches() == []
    assert segments.answered(A, "a0")
    assert segments.fetches() == [Fetch(B, ["b0"])]
    segments.node_lost(B)
    assert segments.fetches() == [Fetch(A, ["a1"])]


def test_one_that_is_larger_than_all_may_be_comes_alone():
    segments = KeptSegments(window_bytes=10, total_bytes=20)
    segments.made(A, "huge", 1000)
    segments.made(B, "small", 1)
    segments.want("huge")
    segments.want("small")
    assert segments.fetches() == [Fetch(A, ["huge"])]
    assert segments.answered(A, "huge")
    assert segments.fetches() == [Fetch(B, ["small"])]
