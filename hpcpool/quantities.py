"""Whole numbers and seconds, as users give them. It knows no option by name, and nothing of files."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any


def integer(value: Any, problem: str) -> int:
    """Return a plain integer, numpy's being some, too; `TypeError(problem)` for what is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(problem) from None


def seconds(option: str, value: Any) -> float | None:
    """Return seconds above 0, or None for no limit; `TypeError` or `ValueError` for what is neither."""
    if value is None:
        return None
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{option} must be seconds (a number) or None, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not number > 0 or math.isinf(number):
        raise ValueError(f"{option} must be more than 0 seconds and finite (None: no limit), not {value!r}")
    return number
