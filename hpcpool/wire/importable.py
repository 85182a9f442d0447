"""Which functions and classes another process can import. Nothing is imported here."""

from __future__ import annotations

import sys
from typing import Any

from cloudpickle import cloudpickle as _private

_MISSING = object()


def has_registered_modules() -> bool:
    """Say whether the user asked for modules by value (`cloudpickle.register_pickle_by_value`)."""
    return bool(_private._PICKLE_BY_VALUE_MODULES)


def is_importable(obj: Any) -> bool:
    """Say whether a function or class can be found again by its module and name, outside `__main__`."""
    module_name = getattr(obj, "__module__", None)
    if module_name == "__main__" or not isinstance(module_name, str):
        return False
    found: Any = sys.modules.get(module_name, _MISSING)
    for part in getattr(obj, "__qualname__", "<nameless>").split("."):
        found = getattr(found, part, _MISSING)
    return found is obj
