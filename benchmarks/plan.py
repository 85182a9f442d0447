"""The order of the trials: peers alternate within a round, so that a slow minute of the machine hits all alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Trial(NamedTuple):
    """One work on one peer, once, in a subprocess of its own; rounds count from 0."""

    round: int
    work: str
    peer: str


def trials(peers: Sequence[str], works: Sequence[str], rounds: int) -> list[Trial]:
    """Return all trials in order: each round does each work on all peers, starting with another peer than before."""
    return [
        Trial(number, work, peer)
        for number in range(rounds)
        for position, work in enumerate(works)
        for peer in _rotated(peers, number + position)
    ]


def _rotated(peers: Sequence[str], by: int) -> list[str]:
    start = by % len(peers) if peers else 0
    return [*peers[start:], *peers[:start]]
