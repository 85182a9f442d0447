"""How some kinds of objects travel that cloudpickle cannot take apart. No pickler is here."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from hpcpool.wire.importable import is_importable

Reduced = str | tuple[Any, ...]


def _cached_function(function: Any) -> Reduced:
    """What `functools.lru_cache` made: cloudpickle would only name it. The cache is empty, as in any new process."""
    if is_importable(function):
        return function.__qualname__  # type: ignore[no-any-return]
    return (_cache, (function.__wrapped__, function.cache_parameters()))


def _cache(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _cached_property(made: Any) -> Reduced:
    """Until Python 3.12 it holds a lock; and who makes a class again does not call `__set_name__`."""
    return (_make_cached_property, (made.func, made.attrname))


def _make_cached_property(function: Callable[..., Any], name: str | None) -> Any:
    made = functools.cached_property(function)
    if name is not None:
        made.__set_name__(object, name)
    return made


def _weak_key_dictionary(mapping: Any) -> Reduced:
    """`functools.singledispatch` keeps its cache in one."""
    return (weakref.WeakKeyDictionary, (dict(mapping),))


#: By the type of the object, as `pickle.Pickler.dispatch_table` wants it.
TABLE: dict[type, Callable[[Any], Reduced]] = {
    type(functools.lru_cache(lambda: None)): _cached_function,
    functools.cached_property: _cached_property,
    weakref.WeakKeyDictionary: _weak_key_dictionary,
}
