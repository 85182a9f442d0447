"""What a figure is: its unit, which direction is better, and the statistics over rounds; it measures nothing."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import NamedTuple


class Unit(enum.Enum):
    """What a number counts; decides how it is written."""

    SECONDS = "s"
    PER_SECOND = "/s"
    MIB_PER_SECOND = "MiB/s"
    FRACTION = "of ideal"
    CORES = "cores"


class Better(enum.Enum):
    """The direction in which a figure improves."""

    LOWER = "lower"
    HIGHER = "higher"


class Metric(NamedTuple):
    """One row of the table; `key` names it in the JSON."""

    key: str
    title: str
    unit: Unit
    better: Better


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: a value that was really seen, with at least `percent` % at or below it."""
    if not values:
        raise ValueError("no values to take a percentile of")
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(rank, 1) - 1]


def gain(value: float, baseline: float, better: Better) -> float | None:
    """Return how many times better `value` is than `baseline` (below 1: worse), None where one of them is zero."""
    if value <= 0 or baseline <= 0:
        return None
    return value / baseline if better is Better.HIGHER else baseline / value
