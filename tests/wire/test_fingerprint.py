"""Classes in fingerprints: those that cannot have changed cost no pickling, and any change is seen."""

from __future__ import annotations

import gc
import sys
import types
import weakref

import cloudpickle
import pytest

from hpcpool.wire import functions
from hpcpool.wire.fingerprint import Fingerprint
from hpcpool.wire.functions import FunctionCache

PROGRAM = """
import abc, collections, dataclasses, datetime, decimal, enum, fractions, functools, logging, pathlib, re, typing, uuid
import types, zoneinfo

def helper():
    return CONSTANT

CONSTANT = 1

class Plain:
    count = 0
    where = pathlib.Path("x")

    def __init__(self, n):
        self.n = n

    def method(self, other=CONSTANT, *, key=None):
        return helper()

    @staticmethod
    def static():
        return 1

    @classmethod
    def make(cls):
        return Plain(1)

    @property
    def twice(self):
        return 2 * self.n

    @functools.cached_property
    def once(self):
        return self.n

    @functools.lru_cache
    def cached(self):
        return self.n

class Child(Plain):
    def method(self):
        return super().method()

class Meta(type):
    def call(cls):
        return 1

class WithMeta(metaclass=Meta):
    pass

class Slotted:
    __slots__ = ["a", "b"]

@dataclasses.dataclass(frozen=True, order=True)
class Point:
    x: int
    y: "int" = 0
    other: typing.Optional["Point"] = None
    many: list[Plain] = dataclasses.field(default_factory=list)
    init: dataclasses.InitVar[int] = 3
    call: collections.abc.Callable[[int], Plain] | None = None

@dataclasses.dataclass(slots=True)
class Slim:
    x: Point

class Pair(typing.NamedTuple):
    left: int
    right: Point | None = None

Old = collections.namedtuple("Old", "a b", defaults=(1,))

class Color(enum.Enum):
    RED = 1
    BLUE = (2, "b")

    def other(self):
        return Color.RED

class Flag(enum.IntFlag):
    A = 1
    B = 2

class Name(enum.StrEnum):
    A = enum.auto()

class Abstract(abc.ABC):
    @abc.abstractmethod
    def method(self):
        pass

class Concrete(Abstract):
    method = helper

class Shape(typing.Protocol):
    side: int
    def area(self) -> float: ...

T = typing.TypeVar("T", bound=Plain)

class Generic(typing.Generic[T]):
    pass

class Special(Generic[Plain]):
    pass

class OwnError(Exception):
    pass

class Outer:
    class Inner:
        value = 1

class Keys(typing.TypedDict):
    a: int

@functools.wraps(helper)
def wrapped():
    return helper()

@functools.cache
def cached():
    return helper()

def annotated(a: Plain, b: typing.Literal["b"] = "b") -> list[Point]:
    pass
"""
CLASSES = """
Plain Child Meta WithMeta Slotted Point Slim Pair Old Color Flag Name Abstract Concrete Shape Generic Special OwnError
Outer Outer.Inner Keys
""".split()
VALUES = """
pathlib.Path("a") pathlib.PurePosixPath("a") re.compile("a") logging.getLogger("a") logging.getLogger()
datetime.date(2020,1,1) datetime.datetime(2020,1,1) datetime.datetime(2020,1,1,tzinfo=datetime.timezone.utc)
datetime.time(1,2) datetime.timedelta(1) datetime.datetime(2020,1,1,tzinfo=zoneinfo.ZoneInfo("UTC"))
decimal.Decimal(1) fractions.Fraction(1,3) uuid.UUID(int=1) range(3) NotImplemented list[int] typing.Optional[int]
int|str Color.RED Flag.A|Flag.B Name.A (Color.RED,Point) dict.fromkeys datetime.datetime.now str.upper
object.__new__ typing.Callable[[Point],int] types.FunctionType wrapped cached annotated
dataclasses.MISSING enum.FlagBoundary.KEEP T
""".split()


class Space:
    """A program, in a module that nobody can import once it has run."""

    def __init__(self, source: str = PROGRAM) -> None:
        self._module = types.ModuleType("users_program")
        self.run(source)

    def run(self, source: str) -> None:
        sys.modules["users_program"] = self._module  # dataclasses look there
        try:
            exec(compile(source, "<program>", "exec", dont_inherit=True), vars(self._module))
        finally:
            del sys.modules["users_program"]

    def __getitem__(self, expression: str):
        return eval(expression, vars(self._module))

    def naming(self, expression: str):
        """Return a function that names a global of this value."""
        self.run(f"named = {expression}\ndef f():\n    return named")
        return self["f"]


@pytest.fixture
def space():
    return Space()


@pytest.mark.parametrize("expression", CLASSES + VALUES)
def test_what_cannot_have_changed_is_not_pickled_again(space, expression):
    fingerprint = Fingerprint(space.naming(expression))
    assert fingerprint.stable
    assert fingerprint.still_holds()


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_a_fingerprint_of_its_own(space, name):
    fingerprint = Fingerprint(space[name])
    assert fingerprint.stable
    assert fingerprint.still_holds()


UNSTABLE = {
    "a list in a class": "class C:\n    a = []",
    "an object in a class": "class C:\n    a = Plain(1)",
    "a list in a tuple in a class": "class C:\n    a = ([],)",
    "a dictionary in a base": "class B:\n    a = {}\nclass C(B):\n    pass",
    "a set in a metaclass": "class M(type):\n    a = set()\nclass C(metaclass=M):\n    pass",
    "a list in a class in a class": "class C:\n    class D:\n        a = []",
    "a list that a method names": "L = []\nclass C:\n    def m(self):\n        return L",
    "a list that a static method names": "L = []\nclass C:\n    @staticmethod\n    def m():\n        return L",
    "a list that a class method names": "L = []\nclass C:\n    @classmethod\n    def m(cls):\n        return L",
    "a list that a property names": "L = []\nclass C:\n    @property\n    def m(self):\n        return L",
    "a list that a setter names": (
        "L = []\nclass C:\n    @property\n    def m(self):\n        pass\n"
        "    @m.setter\n    def m(self, v):\n        return L"
    ),
    "a list that a cached property names": (
        "L = []\nclass C:\n    @functools.cached_property\n    def m(self):\n        return L"
    ),
    "a list that a function with a cache names": "L = []\n@functools.cache\ndef C():\n    return L",
    "a list that a wrapped function names": "L = []\n@functools.wraps(helper)\ndef C():\n    return L",
    "a list that the maker of a default names": (
        "L = []\n@dataclasses.dataclass\nclass C:\n    a: list = dataclasses.field(default_factory=lambda: L)"
    ),
    "an object that is a default": (
        "D = Plain(1)\n@dataclasses.dataclass\nclass C:\n    a: Plain = dataclasses.field(default=D, init=False)"
    ),
    "what is said of a field": (
        "D = {'unit': 'm'}\n@dataclasses.dataclass\nclass C:\n    a: Plain = dataclasses.field(metadata=D)"
    ),
    "an annotation with a list in it": "class D:\n    a = []\nclass C:\n    a: typing.Optional[D]",
    "a member of an enum with a list": "class C(enum.Enum):\n    A = [1]",
    "such a member itself": "class D(enum.Enum):\n    A = [1]\nC = D.A",
    "a descriptor of the user's": "class D:\n    def __get__(self, *a):\n        return 1\nclass C:\n    a = D()",
    "a time zone of the user's": (
        "class Z(datetime.tzinfo):\n    a = []\nC = datetime.datetime(2020, 1, 1, tzinfo=Z())"
    ),
    "a date of the user's": "class D(datetime.date):\n    pass\nC = D(2020, 1, 1)",
    "a text of the user's": "class D(str):\n    pass\nC = D('a')",
    "an abstract class with another registered": "class C(abc.ABC):\n    pass\nC.register(Plain)",
    "an attribute that is named as enums do": "class C:\n    _member_map_ = {}",
    "another that is named as named tuples do": "class C:\n    _field_defaults = {}",
    "a method of a list": "C = [1].index",
}


@pytest.mark.parametrize("what", UNSTABLE)
def test_what_can_change_within_is_pickled_again(space, what):
    space.run(UNSTABLE[what])
    assert not Fingerprint(space.naming("C")).stable


def test_an_annotation_that_can_change_within_matters_for_a_class_only(space):
    space.run("class M:\n    a = []\ndef f(x: M):\n    pass\nclass C:\n    def m(self, x: M):\n        pass")
    fingerprint = Fingerprint(space["f"])
    assert fingerprint.stable
    assert fingerprint.still_holds()
    space["M"].b = 1
    assert not fingerprint.still_holds()
    assert not Fingerprint(space["C"]).stable
    for body in "return f, M", "return M, f":
        space.run(f"def g(x: M):\n    {body}")
        assert not Fingerprint(space["g"]).stable


def test_all_is_pickled_again_while_modules_go_by_value(space, monkeypatch):
    fingerprint = Fingerprint(space["helper"])
    assert fingerprint.still_holds()
    monkeypatch.setattr(cloudpickle.cloudpickle, "_PICKLE_BY_VALUE_MODULES", {"a_module"})
    assert not fingerprint.still_holds()
    assert not Fingerprint(space["helper"]).still_holds()


#: What a program may do to its classes; a function names `Plain`, `Child`, … in turn.
CHANGES = {
    "an attribute": ("Plain", "Plain.count = 1"),
    "an attribute that is equal": ("Plain", "Plain.count = False"),
    "a new attribute": ("Plain", "Plain.new = 1"),
    "a deleted attribute": ("Plain", "del Plain.count"),
    "an attribute by another name": ("Plain", "Plain.counted = Plain.count; del Plain.count"),
    "a list instead of a number": ("Plain", "Plain.count = []"),
    "a method": ("Plain", "Plain.method = lambda self: 2"),
    "a method's default": ("Plain", "Plain.method.__defaults__ = (2,)"),
    "a method's keyword": ("Plain", "Plain.method.__kwdefaults__['key'] = 2"),
    "a method's code": ("Plain", "Plain.method.__code__ = (lambda self: 2).__code__"),
    "a method's attribute": ("Plain", "Plain.method.mark = 2"),
    "a function that a method calls": ("Plain", "def helper():\n    return 2"),
    "a global of a function that a method calls": ("Plain", "CONSTANT = 2"),
    "a static method": ("Plain", "Plain.static = staticmethod(lambda: 2)"),
    "a static method that becomes a class method": ("Plain", "Plain.static = classmethod(Plain.static)"),
    "a static method's code": ("Plain", "Plain.static.__code__ = (lambda: 2).__code__"),
    "a class method": ("Plain", "Plain.make = classmethod(lambda cls: 2)"),
    "a property": ("Plain", "Plain.twice = property(lambda self: 2)"),
    "a property's setter": ("Plain", "Plain.twice = Plain.twice.setter(lambda self, value: None)"),
    "a cached property": ("Plain", "Plain.once = functools.cached_property(lambda self: 2)"),
    "a method with a cache": ("Plain", "Plain.cached = functools.lru_cache(lambda self: 2)"),
    "its code": ("Plain", "Plain.cached.__wrapped__.__code__ = (lambda self: 2).__code__"),
    "the name": ("Plain", "Plain.__name__ = 'Other'"),
    "the text": ("Plain", "Plain.__doc__ = 'Other'"),
    "the bases": ("Child", "Child.__bases__ = (type('Base', (), {}),)"),
    "a base's attribute": ("Child", "Plain.count = 2"),
    "a base's method": ("Child", "Plain.method = lambda self: 2"),
    "the class of the class": ("WithMeta", "WithMeta.__class__ = type('Meta2', (Meta,), {})"),
    "a metaclass's method": ("WithMeta", "Meta.call = lambda cls: 2"),
    "a metaclass's attribute": ("WithMeta", "Meta.new = 2"),
    "a dataclass's method": ("Point", "Point.__eq__ = lambda self, other: True"),
    "a dataclass's default": ("Point", "Point.y = 1"),
    "a dataclass's hash": ("Point", "Point.__hash__ = None"),
    "a default of a dataclass's method": ("Point", "Point.__init__.__defaults__ = (5, None, 3, None)"),
    "what a dataclass shows": ("Point", "Point.__repr__ = lambda self: 'Point'"),
    "what that is made of": ("Point", "Point.__repr__.__wrapped__.__code__ = (lambda self: 'Point').__code__"),
    "a class in an annotation": ("Point", "Plain.count = 2"),
    "a class in an annotation of an annotation": ("Slim", "Plain.count = 2"),
    "a named tuple's default": ("Pair", "Pair.__new__.__defaults__ = (7,)"),
    "an old named tuple's default": ("Old", "Old.__new__.__defaults__ = (7,)"),
    "a named tuple's field": ("Pair", "Pair.left = property(lambda self: 7)"),
    "a named tuple's method": ("Pair", "Pair.sum = lambda self: 7"),
    "an enum's method": ("Color", "Color.other = lambda self: 7"),
    "an enum's attribute": ("Color", "Color.extra = 7"),
    "the class of a member": ("Color.RED", "Color.extra = 7"),
    "a class registered with an abstract one": ("Abstract", "Abstract.register(Plain)"),
    "one registered with a base": ("Concrete", "Abstract.register(Plain)"),
    "an inner class": ("Outer", "Outer.Inner.value = 2"),
    "a bound": ("Generic", "Plain.count = 2"),
    "what a generic class is of": ("Special", "Plain.count = 2"),
    "what a function with a cache calls": ("cached", "def helper():\n    return 2"),
    "a function with a cache": ("cached", "cached.__wrapped__.__code__ = (lambda: 2).__code__"),
    "what a wrapped function wraps": ("wrapped", "wrapped.__wrapped__.__code__ = (lambda: 2).__code__"),
    "a class in an annotation of a function": ("annotated", "Plain.count = 2"),
    "another": ("annotated", "Point.y = 2"),
    "a class of this name": ("Plain", "class Plain:\n    pass"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen(space, what):
    name, change = CHANGES[what]
    space.run(f"def f():\n    return {name}")
    cache = FunctionCache()
    before = cache.blob_of(space["f"])
    assert cache.blob_of(space["f"]) is before
    fingerprint = Fingerprint(space["f"])
    assert fingerprint.stable
    assert fingerprint.still_holds()
    space.run(change)
    assert not fingerprint.still_holds()
    assert cache.blob_of(space["f"]).data != before.data


def test_a_mutable_attribute_that_changes_in_place_is_seen(space):
    space.run("class C:\n    a = []\ndef f():\n    return C")
    cache = FunctionCache()
    before = cache.blob_of(space["f"])
    space["C"].a.append(1)
    assert cache.blob_of(space["f"]).key != before.key


def test_a_change_back_is_the_same_blob_again(space):
    space.run("def f():\n    return Plain.count")
    cache = FunctionCache()
    keys = []
    for count in (0, 1, 0, 1):
        space["Plain"].count = count
        keys.append(cache.blob_of(space["f"]).key)
    assert keys[0] == keys[2] != keys[1] == keys[3]


def test_one_attribute_in_the_place_of_a_freed_one_is_a_change(space):
    """They may have the same `id`, one after the other."""
    plain = space["Plain"]
    for number in range(1000, 1050):
        plain.static = staticmethod(eval(f"lambda: {number}"))
        plain.count = number + 0.5
        fingerprint = Fingerprint(plain)
        plain.static = staticmethod(eval(f"lambda: -{number}"))
        assert not fingerprint.still_holds()
        fingerprint = Fingerprint(plain)
        plain.count = number + 0.25
        assert not fingerprint.still_holds()


FREED = {
    "methods": "class C:\n    @staticmethod\n    def a():\n        pass\n    @property\n    def b(self):\n        pass",
    "slots": "class C:\n    __slots__ = ('a',)",
    "a dataclass": "@dataclasses.dataclass(frozen=True)\nclass C:\n    a: int = 0",
    "a dataclass with slots": "@dataclasses.dataclass(slots=True)\nclass C:\n    a: int = 0",
    "a named tuple": "class C(typing.NamedTuple):\n    a: int = 0",
    "an enum": "class C(enum.Enum):\n    A = 1",
    "a member of an enum": "class C(enum.Enum):\n    A = 1\nA = C.A",
    "an abstract class": "class C(abc.ABC):\n    @abc.abstractmethod\n    def a(self):\n        pass",
    "a child": "class B:\n    pass\nclass C(B):\n    pass",
    "a class that names itself": "class C:\n    def a(self):\n        return C",
    "a cached property": "class C:\n    @functools.cached_property\n    def a(self):\n        pass",
    "a function with a cache": "class C:\n    @functools.cache\n    def a(self):\n        return C",
    "an annotation": "class C:\n    pass\ndef A(c: C):\n    pass",
    "one that may change": "class C:\n    pass\nclass D:\n    a = [C]\n    def m(self):\n        return C\n"
    "def A(d: D):\n    pass",
}


@pytest.mark.parametrize("what", FREED)
def test_a_class_and_its_program_are_freed_and_forgotten(what):
    space = Space("import abc, dataclasses, enum, functools, typing\n" + FREED[what])
    space.run("def f():\n    return C, A\nC.back = lambda self: f")
    cache = FunctionCache()
    cache.blob_of(space["f"])
    assert cache._entries[id(space["f"])].fingerprint is not None
    references = [weakref.ref(space["f"]), weakref.ref(space["C"])]
    del space
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert cache._entries == {}


def test_what_is_not_stable_keeps_nothing_alive():
    space = Space("class C:\n    a = []\n    def m(self):\n        return C")
    fingerprint = Fingerprint(space["C"])
    assert not fingerprint.stable
    reference = weakref.ref(space["C"])
    del space
    gc.collect()
    assert reference() is None
    assert not fingerprint.still_holds()


def test_a_class_that_is_gone_is_a_change(space):
    space.run("def f():\n    return Local\nclass Local:\n    pass")
    fingerprint = Fingerprint(space["f"])
    space.run("del Local")
    gc.collect()
    assert not fingerprint.still_holds()


def test_a_function_that_names_a_class_is_pickled_once(space, monkeypatch):
    pickled = []
    original = functions.payload.dumps_by_value
    monkeypatch.setattr(functions.payload, "dumps_by_value", lambda obj: pickled.append(obj) or original(obj))
    space.run("def f():\n    return Point, Color.RED, Pair(1), Plain(2)")
    cache = FunctionCache()
    blobs = {cache.blob_of(space["f"]) for _ in range(5)}
    assert (len(blobs), len(pickled)) == (1, 1)
