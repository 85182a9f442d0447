"""Functions and classes by value: cloudpickle, with four things mended for a pool of long-lived workers.

1. All functions of the user's `__main__` share one namespace in a worker (its `__main__`), as they do at home. A
   function that comes brings the globals it names, each with a token of its content. A global is put in place if it is
   new there, or if the user has changed it since (another token); never if the worker's own code has bound it anew.
   So what an initializer has set or filled is what the calls see.
2. A class that comes by value is treated as `classes` says: the original is left untouched, and a copy keeps what calls
   have set until the user changes the class.
3. Whether something can go by reference is decided once, in `importable`, for plain pickle too.
4. A payload brings a class as a pack, which is pickled once and opened once. What is made for many (a function, a
   set-up, a pack) has its classes in full: they share what they have in common, and go with it when it is used again.

This leans on private parts of cloudpickle (`_dynamic_function_reduce`, `_dynamic_class_reduce`, `globals_ref`,
`_function_setstate`, `_class_setstate`), stable since 2.0; tests/wire/test_by_value.py fails when they change.
"""

from __future__ import annotations

import io
import sys
import types
from collections import ChainMap
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import cloudpickle
import msgspec
from cloudpickle import cloudpickle as _private

from hpcpool.wire import anew, classes, reducers
from hpcpool.wire.importable import SPAWNED_MAIN, has_registered_modules, is_importable

_MISSING = object()
#: The name under which the tokens travel in a function's state.
_TOKENS = "_hpcpool_tokens"


class Global(NamedTuple):
    """A global that a function brings: its value, and what tells whether the user has changed it."""

    token: bytes
    value: Any


#: What functions have brought into this process's `__main__`.
_placed: dict[str, Global] = {}


class Brought(msgspec.Struct):
    """What comes with a function, to be put in place again when it runs after something else was put there."""

    names: dict[str, Global] = {}
    #: Classes, each with the token of its state, and the state.
    classes: list[tuple[type, bytes, Any]] = []
    #: How many placements there had been when it was put in place last.
    placements: int = -1


#: What comes with the functions that are being loaded, the innermost last.
_loading: list[Brought] = []


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler with the mends above, for some kinds of objects more."""

    dispatch_table: ClassVar[Any] = ChainMap(reducers.TABLE, cloudpickle.Pickler.dispatch_table)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: By the id of the value: many functions name the same globals.
        self._tokens: dict[int, bytes] = {}
        #: By the id of a global that goes as a recipe: the recipe. Two functions that name one lock get one.
        self._recipes: dict[int, anew.Recipe] = {}
        #: Classes that are pickled in full, in the order that they are met.
        self.classes: list[type] = []
        #: The packs that are in this payload, by the id of each class in them; None: classes are pickled in full. Large
        #: buffers leave a payload, and never what is made for many.
        self._packs: dict[str, classes.Pack] | None = {} if kwargs.get("buffer_callback") is not None else None

    def reducer_override(self, obj: Any) -> Any:
        if self._packs is not None and issubclass(type(obj), type):
            packed = self._packed(obj, self._packs)
            if packed is not None:
                return packed
        reduced = self._reduced(obj)
        if reduced is NotImplemented:
            return reduced
        if isinstance(obj, types.FunctionType):
            if len(reduced) == 6:  # by value
                make, arguments, (attributes, slots), _, _, set_state = reduced
                slots = self._with_recipes(slots)
                if _is_mains(obj.__globals__):
                    slots, set_state = self._with_tokens(slots), _set_main_function_state
                return (make, arguments, (attributes, slots), None, None, set_state)
        elif isinstance(obj, type) and len(reduced) == 6 and reduced[5] is _private._class_setstate:
            classes.note_sent(obj)
            self.classes.append(obj)
            make, arguments, state, *_ = reduced
            state[0].pop("__slotnames__", None)  # copyreg's, since an instance was pickled: no change of the user's
            if make is _private._make_skeleton_class and "__slots__" in vars(obj) and not issubclass(obj, tuple):
                # cloudpickle forgets them, and an object that comes back would have a __dict__ that its class lacks
                kind, name, bases, namespace, *others = arguments
                arguments = (kind, name, bases, {**namespace, "__slots__": vars(obj)["__slots__"]}, *others)
            return (make, arguments, self._with_token(state), None, None, _set_class_state)
        return reduced

    def _reduced(self, obj: Any) -> Any:
        """Return what cloudpickle would, were `__mp_main__` to it what `__main__` is."""
        if isinstance(obj, types.FunctionType):
            if obj.__module__ == SPAWNED_MAIN:
                return self._dynamic_function_reduce(obj)
        elif issubclass(type(obj), type) and obj.__module__ == SPAWNED_MAIN:
            return _private._dynamic_class_reduce(obj)
        return super().reducer_override(obj)

    def _packed(self, cls: type, packs: dict[str, classes.Pack]) -> Any:
        """Return how a class is opened from a pack, if it goes by value and has one."""
        if is_importable(cls) or cls in _private._BUILTIN_TYPE_NAMES:
            return None
        key = _private._get_or_create_tracker_id(cls)
        pack = packs.get(key) or classes.pack_of(cls, _pickle_in_full)
        if pack is None:
            return None
        for each in pack.ids:
            packs.setdefault(each, pack)
        return (classes.open_class, (key, pack.ids[0], pack.data))

    def _with_token(self, state: Any) -> tuple[bytes, Any]:
        """Return a class's state with a token of it."""
        return _token(state), state

    def _with_recipes(self, slots: dict[str, Any]) -> dict[str, Any]:
        """Return a function's state whose globals are recipes where another process makes them anew."""
        return {**slots, "__globals__": {name: self._or_recipe(value) for name, value in slots["__globals__"].items()}}

    def _or_recipe(self, value: Any) -> Any:
        recipe = self._recipes.get(id(value)) or anew.recipe_of(value)
        if recipe is None:
            return value
        return self._recipes.setdefault(id(value), recipe)

    def _with_tokens(self, slots: dict[str, Any]) -> dict[str, Any]:
        tokens = self._tokens
        for value in slots["__globals__"].values():
            if id(value) not in tokens:
                tokens[id(value)] = _token(value)
        return {**slots, _TOKENS: {name: tokens[id(value)] for name, value in slots["__globals__"].items()}}

    def _function_getnewargs(self, func: Any) -> Any:
        code, base_globals, *rest = super()._function_getnewargs(func)
        if _is_mains(func.__globals__):
            base_globals = _MainNamespace()
        return (code, base_globals, *rest)


class _MainNamespace:
    """Pickles as "the namespace of `__main__`, wherever you are"."""

    def __reduce__(self) -> Any:
        return (_main_globals, ())


def _main_globals() -> dict[str, Any]:
    return sys.modules["__main__"].__dict__


def _is_mains(namespace: dict[str, Any]) -> bool:
    """Say whether this is the namespace of the program's functions. A spawned child's `__main__` is a copy of that."""
    return namespace is _main_globals() or namespace.get("__name__") == SPAWNED_MAIN


def _pickle_in_full(cls: type) -> tuple[bytes, list[type]]:
    """Pickle a class, and behind it a list of all classes in it; return that list, too."""
    file = io.BytesIO()
    pickler = Pickler(file, 5)
    pickler.dump((cls, pickler.classes))  # the list is filled while the class is pickled
    return file.getvalue(), pickler.classes


class _TokenPickler(Pickler):
    """Leaves out the globals of functions: each has a token of its own, and a function may name itself."""

    def _with_tokens(self, slots: dict[str, Any]) -> dict[str, Any]:
        return {**slots, "__globals__": sorted(slots["__globals__"])}

    def _with_token(self, state: Any) -> tuple[bytes, Any]:
        return b"", state


def _token(value: Any) -> bytes:
    """Return a digest of a global's content; b"" if it cannot be pickled (pickling the function will say so)."""
    import hashlib  # as in `wire.functions`

    file = io.BytesIO()
    try:
        _TokenPickler(file, 5).dump(value)
    except Exception:  # noqa: BLE001 - user code in __reduce__; it runs again, and is reported, with the function
        return b""
    return hashlib.blake2b(file.getbuffer(), digest_size=8).digest()


def _set_main_function_state(function: Any, state: Any) -> None:
    attributes, slots = state
    slots = dict(slots)
    tokens = slots.pop(_TOKENS, {})
    brought = {name: Global(tokens.get(name, b""), value) for name, value in slots.pop("__globals__").items()}
    if function.__globals__ is _main_globals():
        if _loading:
            _loading[-1].names.update(brought)
        _put_names_in_place(brought)
    else:
        for name, (_, value) in brought.items():
            function.__globals__.setdefault(name, value)
    _private._function_setstate(function, (attributes, {**slots, "__globals__": {}}))


def put_in_place(brought: Brought) -> None:
    """Bring what came with a function into this process once more, by the rules at the top of this file."""
    if brought.placements != classes.Placements.count:
        _put_names_in_place(brought.names)
        for cls, token, state in brought.classes:
            classes.put_in_place(cls, token, state)
        brought.placements = classes.Placements.count


def _put_names_in_place(brought: dict[str, Global]) -> None:
    namespace = _main_globals()
    for name, new in brought.items():
        placed = _placed.get(name)
        is_ours = placed is not None and namespace.get(name, _MISSING) is placed.value and placed.token != new.token
        if name not in namespace or is_ours:
            namespace[name] = new.value
            _placed[name] = new
            classes.Placements.count += 1


def loading(load: Callable[[], Any]) -> tuple[Any, Brought]:
    """Load a function; return it and what comes with it."""
    brought = Brought()
    _loading.append(brought)
    try:
        loaded = load()
    finally:
        _loading.pop()
    brought.placements = classes.Placements.count
    return loaded, brought


def _set_class_state(cls: type, state: Any) -> type:
    if not classes.is_original(cls):
        token, content = state
        if _loading:
            _loading[-1].classes.append((cls, token, content))
        classes.put_in_place(cls, token, content)
    return cls


__all__ = ["Brought", "Global", "Pickler", "has_registered_modules", "is_importable", "loading", "put_in_place"]
