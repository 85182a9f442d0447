"""Functions and classes by value: cloudpickle, with three things mended for a pool of long-lived workers.

1. All functions of the user's `__main__` share one namespace in a worker (its `__main__`), as they do at home: a
   global that an initializer sets is seen by the calls. A function that comes later brings the globals it names, but
   never overwrites one that the worker's own code has changed since.
2. A class that went out by value and comes back inside a result is the original class, untouched.
3. Whether something can go by reference is decided here, once, for plain pickle too.

This leans on private parts of cloudpickle (`_dynamic_function_reduce`, `_dynamic_class_reduce`, `globals_ref`,
`_function_setstate`, `_class_setstate`), stable since 2.0; tests/wire/test_by_value.py fails when they change.
"""

from __future__ import annotations

import sys
import types
import weakref
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _private

_MISSING = object()
#: What functions have brought into this process's `__main__`: name -> the object put there.
_placed: dict[str, Any] = {}
#: Classes that this process has sent out by value: theirs is the true state.
_sent_classes: weakref.WeakSet[type] = weakref.WeakSet()


def is_importable(obj: Any) -> bool:
    """Say whether a function or class can be found again by its module and name, outside `__main__`."""
    module_name = getattr(obj, "__module__", None)
    if module_name == "__main__" or not isinstance(module_name, str):
        return False
    found: Any = sys.modules.get(module_name, _MISSING)
    for part in getattr(obj, "__qualname__", "<nameless>").split("."):
        found = getattr(found, part, _MISSING)
    return found is obj


def has_registered_modules() -> bool:
    """Say whether the user asked for modules by value (`cloudpickle.register_pickle_by_value`)."""
    return bool(_private._PICKLE_BY_VALUE_MODULES)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler with the three mends above."""

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented:
            return reduced
        if isinstance(obj, types.FunctionType):
            if obj.__globals__ is _main_globals():
                make, arguments, state, *_ = reduced
                return (make, arguments, state, None, None, _set_main_function_state)
        elif isinstance(obj, type) and len(reduced) == 6 and reduced[5] is _private._class_setstate:
            _sent_classes.add(obj)
            return (*reduced[:5], _set_class_state)
        return reduced

    def _function_getnewargs(self, func: Any) -> Any:
        code, base_globals, *rest = super()._function_getnewargs(func)
        if func.__globals__ is _main_globals():
            base_globals = _MainNamespace()
        return (code, base_globals, *rest)


class _MainNamespace:
    """Pickles as "the namespace of `__main__`, wherever you are"."""

    def __reduce__(self) -> Any:
        return (_main_globals, ())


def _main_globals() -> dict[str, Any]:
    return sys.modules["__main__"].__dict__


def _set_main_function_state(function: Any, state: Any) -> None:
    attributes, slots = state
    namespace = function.__globals__
    fresh = {
        name: value
        for name, value in slots["__globals__"].items()
        if name not in namespace or (name in _placed and namespace[name] is _placed[name])
    }
    if namespace is _main_globals():
        _placed.update(fresh)
    _private._function_setstate(function, (attributes, {**slots, "__globals__": fresh}))


def _set_class_state(cls: type, state: Any) -> type:
    if cls in _sent_classes:
        return cls
    return _private._class_setstate(cls, state)  # type: ignore[no-any-return]
