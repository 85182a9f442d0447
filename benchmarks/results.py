"""What trials came to: figures or a failure each, and the medians over rounds; pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.plan import Trial


@dataclass(frozen=True)
class Measured:
    """A trial that worked; the figures are named by `Metric.key`."""

    figures: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """A trial that did not; `reason` is one line, `output` the last lines that it wrote."""

    reason: str
    output: str


@dataclass(frozen=True)
class Result:
    """One trial, what it came to, and how long its subprocess took."""

    trial: Trial
    #: How many calls it was given (for `idle`: seconds).
    size: int
    outcome: Measured | Failed
    wall_s: float
    #: Processes that had to be killed a while after it ended well.
    left_behind: int


def values(results: Sequence[Result], peer: str, key: str) -> list[float]:
    """Return a figure of a peer, round for round, without the trials that failed."""
    return [
        result.outcome.figures[key]
        for result in results
        if result.trial.peer == peer and isinstance(result.outcome, Measured) and key in result.outcome.figures
    ]


def median(results: Sequence[Result], peer: str, key: str) -> float | None:
    """Return the median over rounds, or None where no trial worked."""
    found = values(results, peer, key)
    return statistics.median(found) if found else None


def failures(results: Sequence[Result], peer: str, work: str) -> list[Result]:
    """Return the trials of a work on a peer that failed."""
    return [
        result
        for result in results
        if result.trial.peer == peer and result.trial.work == work and isinstance(result.outcome, Failed)
    ]
