from __future__ import annotations

import collections
import functools
import io
import json
import sys
import textwrap
import types

import cloudpickle
import pytest
from cloudpickle import cloudpickle as private

from hpcpool.wire import by_value
from hpcpool.wire.payload import dumps_by_value


def program(main, source):
    main.run(textwrap.dedent(source))


# -- one namespace of __main__ in each worker


def test_functions_of_main_share_their_globals(main, worker):
    program(
        main,
        """
        counter = 0
        def count():
            global counter
            counter += 1
            return counter
        def look():
            return counter
        """,
    )
    assert [worker.call(main.count), worker.call(main.count), worker.call(main.look)] == [1, 2, 2]
    assert main.counter == 0


def test_what_a_call_binds_is_seen_by_functions_that_come_later(main, worker):
    """As an initializer does it."""
    program(
        main,
        """
        def initialize(value):
            global connection
            connection = value
        def use():
            return connection
        """,
    )
    worker.call(main.initialize, "open")
    assert worker.call(main.use) == "open"
    assert not hasattr(main.module, "connection")


def test_what_a_call_binds_is_not_overwritten_by_what_the_user_has_at_home(main, worker):
    program(
        main,
        """
        state = None
        def initialize():
            global state
            state = "ready"
        def use():
            return state
        def use_too():
            return state
        """,
    )
    worker.call(main.initialize)
    assert worker.call(main.use) == "ready"
    main.run("state = 'changed at home'")
    assert worker.call(main.use) == "ready"
    assert worker.call(main.use_too) == "ready"


def test_what_a_call_fills_is_not_emptied_by_functions_that_come_later(main, worker):
    program(
        main,
        """
        cache = {}
        def put(key):
            cache[key] = True
        def keys():
            return sorted(cache)
        def has(key):
            return key in cache
        """,
    )
    worker.call(main.put, "a")
    assert worker.call(main.keys) == ["a"]
    worker.call(main.put, "b")
    assert worker.call(main.keys) == ["a", "b"]
    assert worker.call(main.has, "a")
    assert main.cache == {}


def test_what_the_user_changes_between_calls_is_seen_also_when_it_changes_back(main, worker):
    program(main, "def f():\n    return X")
    seen = []
    for value in (1, 2, 1, 2, 1):
        main.run(f"X = {value}")
        seen.append(worker.call(main.f))
    assert seen == [1, 2, 1, 2, 1]


def test_what_the_user_changes_in_place_is_seen(main, worker):
    program(main, "numbers = [1]\ndef f():\n    return sum(numbers)")
    assert worker.call(main.f) == 1
    main.numbers.append(5)
    assert worker.call(main.f) == 6


def test_functions_that_come_with_different_values_of_a_global_each_see_their_own(main, worker):
    program(main, "def f():\n    return 'f', X\ndef g():\n    return 'g', X")
    main.run("X = 1")
    assert worker.call(main.f) == ("f", 1)
    main.run("X = 2")
    assert worker.call(main.g) == ("g", 2)
    assert worker.call(main.f) == ("f", 2)
    main.run("X = 1")
    assert worker.call(main.f) == ("f", 1)
    assert worker.call(main.g) == ("g", 1)


def test_a_function_that_is_defined_anew_is_called_anew(main, worker):
    program(main, "def helper():\n    return 'old'\ndef f():\n    return helper()")
    assert worker.call(main.f) == "old"
    program(main, "def helper():\n    return 'new'")
    assert worker.call(main.f) == "new"


def test_functions_that_call_each_other_find_each_other(main, worker):
    program(
        main,
        """
        def is_even(n):
            return n == 0 or is_odd(n - 1)
        def is_odd(n):
            return n != 0 and is_even(n - 1)
        """,
    )
    assert worker.call(main.is_even, 10)
    assert not worker.call(main.is_odd, 10)


def test_lambdas_closures_and_defaults_go(main, worker):
    program(
        main,
        """
        import math
        def adder(n):
            return lambda x, factor=math.pi: x * factor + n
        add = adder(5)
        """,
    )
    assert worker.call(main.add, 2, factor=10) == 25
    assert worker.call(main.add, 0) == 5


def test_a_module_of_main_is_imported_there(main, worker):
    program(main, "import json as j\ndef f(value):\n    return j.dumps(value)")
    assert worker.call(main.f, [1]) == "[1]"


def test_a_function_of_main_that_comes_back_works_on_the_namespace_at_home(main, worker):
    program(
        main,
        """
        X = "home"
        def get():
            return X
        def make():
            global X
            X = "away"
            return get
        """,
    )
    returned = worker.call(main.make)
    assert returned.__globals__ is main.module.__dict__
    assert returned() == "home"
    assert main.X == "home"


def test_functions_of_other_namespaces_keep_to_themselves(main, worker):
    """As of an `exec` of the user's own: they share nothing with `__main__`."""
    namespace: dict[str, object] = {"__name__": "elsewhere"}
    exec("X = 'elsewhere'\ndef f():\n    return X", namespace)
    program(main, "X = 'main'\ndef f():\n    return X")
    assert worker.call(main.f) == "main"
    assert worker.call(namespace["f"]) == "elsewhere"
    assert worker.call(main.f) == "main"


# -- classes of __main__


CLASSES = """
import collections, dataclasses, enum, typing

class Plain:
    shared = 1
    def __init__(self, n):
        self.n = n
    def __eq__(self, other):
        return type(other) is type(self) and other.n == self.n
    __hash__ = None

class Child(Plain):
    def double(self):
        return Plain(2 * self.n)

@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int = 0

class Color(enum.Enum):
    RED = 1
    GREEN = 2

class Flag(enum.IntFlag):
    A = 1
    B = 2

Pair = collections.namedtuple("Pair", "a b")

class Typed(typing.NamedTuple):
    a: int

class Slotted:
    __slots__ = ("v",)
    def __init__(self, v):
        self.v = v

class Meta(type):
    pass

class WithMeta(metaclass=Meta):
    pass

class Hidden:
    __slots__ = ("__name", "__weakref__")
    def __init__(self, name):
        self.__name = name
    def name(self):
        return self.__name

@dataclasses.dataclass(slots=True)
class Slim:
    x: int

class Mixed(Slotted):
    pass

class Empty:
    __slots__ = ()

class Below(Empty):
    __slots__ = ("v",)

def same(value):
    return value

def kind(value):
    return type(value).__name__
"""


@pytest.mark.parametrize(
    "expression",
    [
        "Plain(3)",
        "Child(3)",
        "Point(1, 2)",
        "Color.RED",
        "Flag.A | Flag.B",
        "Pair(1, 2)",
        "Typed(1)",
        "WithMeta()",
        "Slotted(1)",
        "Hidden('x')",
        "Slim(1)",
        "Mixed(1)",
        "Empty()",
        "Below()",
    ],
)
def test_an_object_that_comes_back_is_of_the_class_at_home(main, worker, expression):
    main.run(CLASSES)
    value = eval(expression, main.module.__dict__)
    assert worker.call(main.kind, value) == type(value).__name__
    (returned,) = worker.call(main.same, [value])
    assert type(returned) is type(value)
    assert hasattr(returned, "__dict__") == hasattr(value, "__dict__")
    if type(value).__eq__ is not object.__eq__:
        assert returned == value


def test_the_slots_of_a_class_are_kept(main, worker):
    main.run(CLASSES)
    program(main, "def has_dict(value):\n    return hasattr(value, '__dict__')")
    assert not worker.call(main.has_dict, main.Slotted(1))
    assert worker.call(main.Hidden.name, main.Hidden("x")) == "x"
    assert worker.call(main.same, main.Hidden("x")).name() == "x"


def test_a_member_of_an_enum_that_comes_back_is_the_very_member(main, worker):
    main.run(CLASSES)
    assert worker.call(main.same, main.Color.GREEN) is main.Color.GREEN


def test_a_class_that_comes_back_is_untouched_by_what_was_done_to_it_there(main, worker):
    main.run(CLASSES)
    program(
        main,
        """
        def spoil(value):
            type(value).shared = "spoilt"
            return value
        """,
    )
    returned = worker.call(main.spoil, main.Plain(1))
    assert type(returned) is main.Plain
    assert main.Plain.shared == 1


def test_a_class_that_is_changed_at_home_is_changed_there(main, worker):
    main.run(CLASSES)
    program(main, "def shared(value):\n    return value.shared")
    assert worker.call(main.shared, main.Plain(1)) == 1
    main.Plain.shared = 2
    assert worker.call(main.shared, main.Plain(1)) == 2


def test_so_is_one_that_has_come_back_before(main, worker):
    """The worker has sent it by value, too: that does not make the worker's the true one."""
    main.run(CLASSES)
    program(main, "def shared(value):\n    return value.shared")
    assert type(worker.call(main.same, main.Plain(1))) is main.Plain
    main.Plain.shared = 2
    assert worker.call(main.shared, main.Plain(1)) == 2


def test_classes_keep_their_kin_and_their_methods(main, worker):
    main.run(CLASSES)
    doubled = worker.call(main.Child.double, main.Child(4))
    assert type(doubled) is main.Plain
    assert doubled.n == 8
    assert isinstance(worker.call(main.same, main.Child(1)), main.Plain)
    assert worker.call(main.Child(5).double).n == 10


def test_a_class_that_was_made_there_works_here(main, worker):
    program(
        main,
        """
        def make():
            class Local:
                value = 7
                def get(self):
                    return self.value
            return Local()
        """,
    )
    assert worker.call(main.make).get() == 7


def test_an_instance_of_a_class_made_by_a_call_can_be_sent_on(main, worker):
    program(
        main,
        """
        def make():
            class Local:
                value = 7
            return Local()
        def get(x):
            return x.value
        """,
    )
    assert worker.call(main.get, worker.call(main.make)) == 7


# -- by reference or by value


def test_what_can_be_imported_by_its_name_is_importable():
    assert by_value.is_importable(json.dumps)
    assert by_value.is_importable(collections.OrderedDict)
    assert by_value.is_importable(collections.OrderedDict.fromkeys) is False  # a bound method is made for each look
    assert by_value.is_importable(json.JSONEncoder.encode)


def test_what_cannot_is_not(main):
    main.run("def f():\n    pass\nclass C:\n    pass")

    def local():
        pass

    assert not by_value.is_importable(main.f)
    assert not by_value.is_importable(main.C)
    assert not by_value.is_importable(local)
    assert not by_value.is_importable(lambda: None)
    assert not by_value.is_importable(object())
    renamed = types.FunctionType(json.dumps.__code__, {}, "dumps")
    renamed.__module__, renamed.__qualname__ = "json", "dumps"
    assert not by_value.is_importable(renamed)
    renamed.__module__ = "no.such.module"
    assert not by_value.is_importable(renamed)
    renamed.__module__ = None  # type: ignore[assignment]
    assert not by_value.is_importable(renamed)


def test_modules_registered_by_value_are_known(monkeypatch):
    assert not by_value.has_registered_modules()
    module = types.ModuleType("registered_for_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    cloudpickle.register_pickle_by_value(module)
    try:
        assert by_value.has_registered_modules()
    finally:
        cloudpickle.unregister_pickle_by_value(module)


# -- what cloudpickle must not change


def test_the_private_parts_of_cloudpickle_are_as_they_were():
    """If this fails after an update of cloudpickle, look at all that by_value.py and functions.py take from it."""

    def f():
        return sys.path

    class C:
        pass

    pickler = cloudpickle.Pickler(io.BytesIO())
    reduced = pickler.reducer_override(f)
    assert len(reduced) == 6
    assert reduced[5] is private._function_setstate
    attributes, slots = reduced[2]
    assert isinstance(attributes, dict)
    assert slots["__globals__"] == {"sys": sys}
    code, base_globals, *_ = pickler._function_getnewargs(f)
    assert code is f.__code__
    assert isinstance(base_globals, dict)
    reduced = pickler.reducer_override(C)
    assert len(reduced) == 6
    assert reduced[5] is private._class_setstate
    assert list(private._extract_code_globals(f.__code__)) == ["sys"]
    assert isinstance(private._PICKLE_BY_VALUE_MODULES, set)


def test_a_pickle_by_value_is_the_same_each_time(main):
    """The content hash of a function must not depend on when it was pickled."""
    main.run(CLASSES)
    program(main, "def f(a, b=2):\n    return same(a), kind(b), {'x', 'y'}")
    assert dumps_by_value(main.f) == dumps_by_value(main.f)


# -- functions with a cache


def test_a_function_with_a_cache_goes_with_an_empty_one(main, worker):
    program(
        main,
        """
        import functools
        @functools.lru_cache(maxsize=5, typed=True)
        def f(x):
            calls.append(x)
            return x + 1
        calls = []
        def use(function):
            return [function(1), function(1)], len(calls), function.cache_parameters()
        def name_it():
            return f(7)
        """,
    )
    main.f(1)
    main.calls.clear()
    assert worker.call(main.use, main.f) == ([2, 2], 1, {"maxsize": 5, "typed": True})
    assert worker.call(main.f, 3) == 4
    assert worker.call(main.name_it) == 8


def test_one_that_can_be_imported_is_only_named(worker):
    assert worker.call(calls_of_a_cached_function) == 1


@functools.lru_cache
def cached(x: int) -> int:
    return x


def calls_of_a_cached_function() -> int:
    cached(1)
    cached(1)
    return cached.cache_info().misses
