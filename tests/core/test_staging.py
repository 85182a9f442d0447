from __future__ import annotations

import pytest

from hpcpool.core.staging import SPARED, Copy, Where, to_let_go, where

OLD, NEW = (7, 1), (7, 2)


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (NEW, NEW, Where.HERE),
        (None, NEW, Where.COPY),
        (OLD, NEW, Where.COPY),
        (None, None, Where.MADE),
        (OLD, None, Where.MADE),
    ],
)
def test_a_file_is_the_clients_own_if_it_is_in_the_same_state_else_a_copy_or_to_be_made(here, there, expected):
    assert where(here, there) is expected


def test_an_output_is_made_whatever_is_there():
    assert where(NEW, NEW, is_output=True) is Where.MADE


DISK = 1000
RESERVE = int(SPARED * DISK)
COPIES = [Copy("new", 100, 3.0), Copy("old", 100, 1.0), Copy("middle", 100, 2.0)]


def test_where_there_is_room_every_copy_stays():
    assert to_let_go(COPIES, 200, 200 + RESERVE, DISK) == []


def test_the_longest_unused_go_and_no_more_than_needed():
    assert to_let_go(COPIES, 200, 199 + RESERVE, DISK) == ["old"]
    assert to_let_go(COPIES, 200, 100 + RESERVE, DISK) == ["old"]
    assert to_let_go(COPIES, 200, 50 + RESERVE, DISK) == ["old", "middle"]


def test_all_go_if_that_is_not_enough_either():
    assert to_let_go(COPIES, 900, 0, DISK) == ["old", "middle", "new"]


def test_a_part_of_the_disk_stays_free():
    assert to_let_go(COPIES, 0, RESERVE - 1, DISK) == ["old"]
