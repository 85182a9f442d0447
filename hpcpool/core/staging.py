"""Where a call finds a file of the client, and which copies of others go when there is no room. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

#: Size in bytes and time of the last change in nanoseconds: which state of a file is meant.
Identity = tuple[int, int]
#: Of the disk, this part stays free for others when copies of files are kept.
SPARED = 0.05


class Where(Enum):
    """What a path leads to on the node."""

    #: The client's own file: the node sees it at the same path.
    HERE = 1
    #: A copy that the node keeps.
    COPY = 2
    #: What the call makes.
    MADE = 3


def where(here: Identity | None, there: Identity | None, *, is_output: bool = False) -> Where:
    """Say where a call finds a file.

    Args:
        here: the state of the file at this path on the node; None: there is none.
        there: on the client's host.
        is_output: the call makes it, whatever is there.
    """
    if is_output or there is None:
        return Where.MADE
    return Where.HERE if here == there else Where.COPY


class Copy(NamedTuple):
    """A copy that a node keeps."""

    name: str
    nbytes: int
    used_at: float


def to_let_go(copies: Iterable[Copy], wanted_bytes: int, free_bytes: int, disk_bytes: int) -> list[str]:
    """Return the copies to let go of so that one more has room, the longest unused first; maybe that is not enough.

    Args:
        copies: those that no call uses.
        wanted_bytes: of the one more.
        free_bytes, disk_bytes: of the disk that they are on.
    """
    lacking = wanted_bytes + SPARED * disk_bytes - free_bytes
    names: list[str] = []
    for copy in sorted(copies, key=lambda copy: copy.used_at):
        if lacking <= 0:
            break
        names.append(copy.name)
        lacking -= copy.nbytes
    return names
