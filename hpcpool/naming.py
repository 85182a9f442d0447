"""What calls are called in names and messages."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def name_of(fn: Callable[..., Any]) -> str:
    """Return a callable's qualified name; of a `functools.partial` without one, that of the function inside."""
    while isinstance(fn, functools.partial) and "__qualname__" not in vars(fn):
        fn = fn.func
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else type(fn).__qualname__
