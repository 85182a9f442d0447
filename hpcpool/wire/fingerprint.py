"""What the pickle of a function or class was made from, and whether any of it has changed. Nothing is pickled here.

Functions and classes that go by value are taken apart: a function into its code, defaults, closure and the globals that
it names, a class into its bases and attributes. The parts are compared by identity. That is enough as long as none can
change within; where one can (a list, an object of the user's), or where that is not known, the fingerprint is not
`stable`, and whoever wants to be sure has to pickle again.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import functools
import logging
import re
import sys
import types
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from cloudpickle import cloudpickle as _private

from hpcpool.wire.importable import has_registered_modules, is_importable

#: Stands in the place of what does not exist, and between the parts of a function that vary in number.
_MISSING = object()

Look = Callable[[Any], list[Any]]

_IMMUTABLE = frozenset(
    [
        *(bool, bytes, complex, float, int, range, str, type(None), type(Ellipsis), type(NotImplemented)),
        *(types.CodeType, types.ClassMethodDescriptorType, types.MethodDescriptorType, types.WrapperDescriptorType),
        *(type(dataclasses.MISSING), type(dataclasses.KW_ONLY), type(dataclasses._HAS_DEFAULT_FACTORY)),  # type: ignore[attr-defined]
        *(type(vars(collections.namedtuple("_", "x"))["x"]), re.Pattern, uuid.UUID),
        *(logging.Logger, logging.RootLogger),  # they are pickled by their names
        type(_MISSING),
    ]
)
#: The names of more such types, so that nothing is imported for them. Two have a `tzinfo`, which may be the user's.
_ALSO_IMMUTABLE = frozenset(
    """
    datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone zoneinfo.ZoneInfo
    decimal.Decimal fractions.Fraction
    ipaddress.IPv4Address ipaddress.IPv4Network ipaddress.IPv6Address ipaddress.IPv6Network
    pathlib.PosixPath pathlib.PurePosixPath pathlib.PureWindowsPath pathlib.WindowsPath
    pathlib._local.PosixPath pathlib._local.PurePosixPath pathlib._local.PureWindowsPath pathlib._local.WindowsPath
    """.split()
)
#: Values that cannot change, but for what is in them.
_INSIDE: dict[type, Callable[[Any], Iterable[Any]]] = {
    tuple: iter,
    frozenset: iter,
    types.BuiltinFunctionType: lambda function: [function.__self__],  # a module, or the object whose method it is
    types.GenericAlias: lambda alias: [alias.__origin__, alias.__args__],
    type(Callable[[], None]): lambda alias: [alias.__args__],
    types.UnionType: lambda union: [union.__args__],
    dataclasses.InitVar: lambda variable: [variable.type],
}
#: What the objects of `typing` may have in them.
_TYPING = ("__origin__", "__args__", "__metadata__", "__bound__", "__constraints__", "__supertype__")
#: Attributes of a class that cannot be held, as they keep the class alive: what there is to compare of them.
_DESCRIPTORS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    staticmethod: lambda method: (method.__func__,),
    classmethod: lambda method: (method.__func__,),
    property: lambda made: (made.fget, made.fset, made.fdel),
    functools.cached_property: lambda made: (made.func,),
    types.MemberDescriptorType: lambda slot: (slot.__objclass__, slot.__name__),
    types.GetSetDescriptorType: lambda made: (made.__objclass__, made.__name__),
}
#: What `functools.lru_cache` makes.
_CACHED_FUNCTION = type(functools.lru_cache(lambda: None))

#: What the makers of classes keep in a class for themselves. Nobody changes it without changing something else, too.
_MACHINERY = frozenset(
    """
    __annotations__ __annotations_cache__ __orig_bases__ __parameters__ __slots__ __slotnames__
    __dataclass_fields__ __dataclass_params__ __protocol_attrs__ __non_callable_proto_members__
    """.split()
)
_ENUM_MACHINERY = frozenset(
    """
    _member_names_ _member_map_ _value2member_map_
    _unhashable_values_ _unhashable_values_map_ _hashable_values_
    """.split()
)


@functools.cache
def _guarded_repr() -> types.CodeType:
    """Return the code of a dataclass's `__repr__`: it holds a set while it runs, around the true one."""
    return dataclasses.make_dataclass("_", ()).__repr__.__code__


class _Owner(NamedTuple):
    """A function or class that goes by value, what takes it apart, and the ids of its parts."""

    reference: weakref.ref[Any]
    look: Look
    ids: tuple[int, ...]


class Fingerprint:
    """All that the pickle of a function or class was made from, if none of it can change unseen; else not `stable`.

    It keeps no function or class alive that goes by value. Their ids are as good: while they live nothing else can have
    them, and one that has died is seen.
    """

    __slots__ = ("_annotations", "_held", "_owners", "_registrations", "stable")

    def __init__(self, root: types.FunctionType | type) -> None:
        self.stable = True
        self._owners: dict[int, _Owner] = {}
        #: All other parts, so that their ids keep their meaning.
        self._held: list[Any] = []
        #: If there is an abstract class: how often a class was registered with any.
        self._registrations: object = None
        #: Annotations of functions, to be visited when all else is known.
        self._annotations: list[Any] = []
        self._visit_owner(root)
        self._visit_annotations(isinstance(root, type))

    def still_holds(self) -> bool:
        """Say whether everything is still the very same object."""
        for reference, look, ids in self._owners.values():
            owner = reference()
            if owner is None or tuple(map(id, look(owner))) != ids:
                return False
        if self._registrations not in (None, abc.get_cache_token()):
            return False
        return not has_registered_modules()  # what is of these goes by value, and was not visited

    def _visit_owner(self, owner: Any) -> None:
        if id(owner) in self._owners:
            return
        look = _look_at(owner)
        parts = look(owner)
        self._owners[id(owner)] = _Owner(weakref.ref(owner), look, tuple(map(id, parts)))
        self._visit_all(parts)
        if not self.stable:
            return
        self._held += [part for part in parts if not (id(part) in self._owners or issubclass(type(part), enum.Enum))]
        if isinstance(owner, type):
            self._visit_all(_machinery_parts(owner))
            if isinstance(owner, abc.ABCMeta):
                self._visit_registry(owner)
        elif type(owner) is types.FunctionType:
            self._annotations += owner.__annotations__.values()

    def _visit_all(self, values: Iterable[Any]) -> None:
        for value in values:
            if not self.stable:
                return
            self._visit(value)

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if issubclass(kind, type) or kind in (types.FunctionType, _CACHED_FUNCTION):
            if not (is_importable(value) or (kind is type and value in _private._BUILTIN_TYPE_NAMES)):
                self._visit_owner(value)
        elif issubclass(kind, enum.Enum):  # its class keeps it, and it is pickled as its value
            self._visit(kind)
        elif kind in _INSIDE:
            self._visit_all(_INSIDE[kind](value))
        elif kind is types.ModuleType:
            self.stable = sys.modules.get(value.__name__) is value  # any other goes by value
        elif kind.__module__ in ("typing", "typing_extensions"):
            self._visit_all(getattr(value, name, None) for name in _TYPING)
        elif kind not in _IMMUTABLE:
            self.stable = f"{kind.__module__}.{kind.__qualname__}" in _ALSO_IMMUTABLE and is_importable(kind)
            if self.stable:
                self._visit(getattr(value, "tzinfo", None))

    def _visit_annotations(self, is_strict: bool) -> None:
        """Visit what is no part of a function, but is in its pickle and may be a class that changes.

        That such a class may change within matters for the pickle of a class only, which must not bring another one as
        it was once. With a function comes an argument that brings it as it is: no reason to pickle it again and again.
        """
        while self.stable and self._annotations:
            self._visit(self._annotations.pop())
            self.stable = self.stable or not is_strict
        self._annotations.clear()

    def _visit_registry(self, cls: abc.ABCMeta) -> None:
        if self._registrations is None:
            self._registrations = abc.get_cache_token()
        registry, *_ = abc._get_dump(cls)  # type: ignore[attr-defined]
        self.stable = self.stable and not registry


# -- what functions and classes are made from -------------------------------------------------------------------------


def _look_at(owner: Any) -> Look:
    """Return what takes this function or class apart: the same parts in the same order each time."""
    if isinstance(owner, type):
        return functools.partial(_class_parts, _machinery_of(owner))
    if type(owner) is _CACHED_FUNCTION:
        return _wrapped_parts
    if owner.__code__ == _guarded_repr():  # a copy of it in a worker
        return _guarded_repr_parts
    return functools.partial(_function_parts, tuple(_private._extract_code_globals(owner.__code__)))


def _function_parts(global_names: tuple[str, ...], function: types.FunctionType) -> list[Any]:
    parts = [function.__code__, *(function.__defaults__ or ())]
    for mapping in function.__kwdefaults__, function.__dict__:
        parts.append(_MISSING)
        if mapping:
            parts += mapping
            parts += mapping.values()
    parts.append(_MISSING)
    if function.__closure__:
        parts += map(_cell_value, function.__closure__)
    get = function.__globals__.get
    return parts + [get(name, _MISSING) for name in global_names]


def _cell_value(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return _MISSING


def _wrapped_parts(function: Any) -> list[Any]:
    return [function.__wrapped__]


def _guarded_repr_parts(function: Any) -> list[Any]:
    return [function.__code__, function.__wrapped__]


def _class_parts(machinery: frozenset[str], cls: type) -> list[Any]:
    parts: list[Any] = [type(cls), cls.__name__, *cls.__bases__]
    for name, value in vars(cls).copy().items():
        if name in machinery:
            continue
        parts.append(name)
        inside = _DESCRIPTORS.get(type(value))
        if inside is None:
            parts.append(value)
        else:
            parts += (type(value), *inside(value))
    return parts


def _machinery_of(cls: type) -> frozenset[str]:
    """Return the names of those attributes that are not compared."""
    names = _MACHINERY
    if isinstance(cls, abc.ABCMeta):
        names |= {"_abc_impl"}
    if issubclass(cls, enum.Enum):
        names |= _ENUM_MACHINERY
    if issubclass(cls, tuple):  # a named tuple's: they are the defaults of its __new__, too
        names |= {"_field_defaults"}
    return names


def _machinery_parts(cls: type) -> Iterator[Any]:
    """Return what is pickled of the attributes that are not compared, and may change within."""
    namespace = vars(cls)
    yield from namespace.get("__annotations__", {}).values()
    yield from namespace.get("__orig_bases__", ())
    for field in namespace.get("__dataclass_fields__", {}).values():
        yield from (field.type, field.default, field.default_factory)
        if field.metadata:
            yield field.metadata  # of a dictionary of the user's
    if issubclass(cls, enum.Enum):
        yield from (member._value_ for member in cls)


__all__ = ["Fingerprint"]
