"""What calls are called in names and messages."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def name_of(fn: Callable[..., Any]) -> str:
    """Return a callable's qualified name, that of the function inside of a `functools.partial`."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else type(fn).__qualname__
