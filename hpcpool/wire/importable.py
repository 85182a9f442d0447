"""Which functions and classes another process can import, and how it finds them."""

from __future__ import annotations

import sys
from typing import Any

from cloudpickle import cloudpickle as _private

_MISSING = object()
#: In a child that multiprocessing has started without a fork, the program's own module has another name.
SPAWNED_MAIN = "__mp_main__"
#: The names of the module that is the user's program. No other process can import it.
MAINS = frozenset({"__main__", SPAWNED_MAIN})


def has_registered_modules() -> bool:
    """Say whether the user asked for modules by value (`cloudpickle.register_pickle_by_value`)."""
    return bool(_private._PICKLE_BY_VALUE_MODULES)


def is_importable(obj: Any) -> bool:
    """Say whether a function or class can be found again by its module and name, outside the user's program."""
    module_name = getattr(obj, "__module__", None)
    if not isinstance(module_name, str) or module_name in MAINS:
        return False
    found: Any = sys.modules.get(module_name, _MISSING)
    for part in getattr(obj, "__qualname__", "<nameless>").split("."):
        found = getattr(found, part, _MISSING)
    return found is obj


def name_to_import(function: Any) -> str | None:
    """Return the module:name by which `find` finds a function again; None if it is not that simple."""
    module_name, name = function.__module__, function.__qualname__
    module = sys.modules.get(module_name)
    if module is None or module_name in MAINS or getattr(module, name, None) is not function:
        return None
    return f"{module_name}:{name}"


def find(name: str) -> Any:
    """Return the function of this module:name. Raises what importing its module raises, and `AttributeError`."""
    module_name, _, function = name.partition(":")
    # As pickle does: to look into `sys.modules` only would find a module that another thread is still importing.
    __import__(module_name)
    return getattr(sys.modules[module_name], function)
