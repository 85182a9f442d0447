"""Classes in payloads: pickled once, opened once, and right all the same."""

from __future__ import annotations

import gc
import operator
import types
import weakref
from concurrent.futures import Future

import pytest

from hpcpool.wire import by_value, classes
from hpcpool.wire.functions import load_function
from hpcpool.wire.packing import Payload
from hpcpool.wire.payload import pickle_call, pickle_value, unpickle
from tests.wire import peers
from tests.wire.peers import Worker

PROGRAM = """
import dataclasses, enum, typing

openings = 0

class Base:
    def __init_subclass__(cls):
        global openings
        openings += 1

class Child(Base):
    shared = 1
    def __init__(self, n=0):
        self.n = n
    def me(self):
        return Child, Other
    def shared_too(self):
        return Child.shared

class Other(Base):
    def me(self):
        return Other, Child

@dataclasses.dataclass(frozen=True)
class Point:
    x: int = 0

class Pair(typing.NamedTuple):
    left: int

class Color(enum.Enum):
    RED = 1

class Slotted:
    __slots__ = ("v",)

def same(value):
    return value

def openings_here(value=None):
    return openings

def use(value):
    return value.shared

def use_too():
    return Child.shared

def spoil():
    Child.shared = "spoilt"
"""


@pytest.fixture
def program(main):
    main.run(PROGRAM)
    return main


@pytest.fixture
def pickled(monkeypatch):
    """The classes that have been pickled in full."""
    seen = []
    original = by_value._pickle_in_full
    monkeypatch.setattr(by_value, "_pickle_in_full", lambda cls: seen.append(cls) or original(cls))
    return seen


VALUES = ["Child()", "Point()", "Pair(1)", "Color.RED", "Slotted()", "Child", "[Child(), Child]"]


@pytest.mark.parametrize("expression", VALUES)
def test_a_class_is_pickled_once_while_it_does_not_change(program, pickled, expression):
    value = eval(expression, vars(program.module))
    sizes = {len(pickle_value(value).data) for _ in range(3)}
    assert len(pickled) == len(sizes) == 1
    pickled[0].new = 1
    assert len(pickle_value(value).data) not in sizes
    assert len(pickled) == 2


def test_it_is_opened_once(program, worker):
    program.run("def count():\n    return openings")
    seen = [worker.call(program.openings_here, program.Child()) for _ in range(5)]
    assert seen[0] > 0
    assert seen[-3:] == seen[-1:] * 3, "it was opened again although nothing has changed"
    program.Child.shared = 2
    assert worker.call(program.openings_here, program.Child()) > seen[-1]


def test_the_worker_too_pickles_it_once(program, worker):
    program.run(
        """
def pickled(value):
    from hpcpool.wire import by_value
    if not hasattr(by_value, "count"):
        original, by_value.count = by_value._pickle_in_full, 0
        def counting(cls):
            by_value.count += 1
            return original(cls)
        by_value._pickle_in_full = counting
    return value, by_value.count
"""
    )
    for expression in VALUES:
        value = eval(expression, vars(program.module))
        counts = [worker.call(program.pickled, value)[1] for _ in range(5)]
        assert counts[-2] == counts[-1] <= counts[0] + 2, expression  # to open Child is to change what Base names


def test_the_original_is_not_opened(program, worker, monkeypatch):
    value = program.Child(5)
    worker.call(program.same, value)
    opened = []
    original = classes.pickle.loads
    monkeypatch.setattr(
        classes, "pickle", types.SimpleNamespace(loads=lambda data: opened.append(data) or original(data))
    )
    assert type(worker.call(program.same, value)) is program.Child
    assert opened == []


def test_a_change_is_seen_by_the_calls_also_when_it_is_changed_back(program, worker):
    seen = []
    for value in (1, 2, 1, 2, 1):
        program.Child.shared = value
        child = program.Child()
        seen.append([worker.call(program.use, child), worker.call(operator.attrgetter("shared"), child)])
        seen[-1] += [worker.call(program.use_too), worker.call(child.shared_too)]
    assert seen == [[value] * 4 for value in (1, 2, 1, 2, 1)]


def test_a_mutable_attribute_that_changes_in_place_is_seen(program, worker):
    program.Child.shared = [1]
    assert worker.call(program.use, program.Child()) == [1]
    program.Child.shared.append(2)
    assert worker.call(program.use, program.Child()) == [1, 2]


def prepared(worker, fn, *args):
    """Pickle a call now; return what runs it."""
    if not isinstance(fn, types.FunctionType):
        call = pickle_call(fn, args, {})
        return lambda: worker.ask({}, [call.payload])
    blob = worker._functions.blob_of(fn)
    call = pickle_call(fn, args, {}, {id(fn): (load_function, (blob.key,))})
    return lambda: worker.ask({blob.key: blob.data}, [call.payload])


def test_calls_that_were_submitted_before_a_change_see_what_was_before(program, worker):
    calls = []
    for value in (1, 2, 1):
        program.Child.shared = value
        calls += [prepared(worker, program.use_too), prepared(worker, operator.attrgetter("shared"), program.Child())]
    program.Child.shared = 3
    order = [0, 3, 4, 1, 2, 5, 3, 1, 0, 3, 3, 4, 4]
    expected = [1, 1, 2, 2, 1, 1]
    assert [calls[index]() for index in order] == [expected[index] for index in order]


def test_what_calls_have_set_stays_until_the_user_changes_the_class(program, worker):
    assert worker.call(program.use, program.Child()) == 1
    worker.call(program.spoil)
    assert worker.call(program.use, program.Child()) == "spoilt"
    assert worker.call(program.use_too) == "spoilt"
    assert worker.call(program.same, program.Child()).shared == 1
    assert worker.call(program.use, program.Child()) == "spoilt"
    program.Child.shared = 5
    assert worker.call(program.use, program.Child()) == 5


def test_to_pickle_an_instance_does_not_change_its_class(program, worker):
    """copyreg writes the names of the slots into the class."""
    assert worker.call(program.use_too) == 1
    worker.call(program.spoil)
    keys = set(worker.keys)
    assert worker.call(program.use, program.Child()) == "spoilt"
    assert worker.call(program.use_too) == "spoilt"
    assert worker.keys - keys <= {worker._functions.blob_of(program.use).key}


def test_a_class_of_the_same_name_is_another(program, worker):
    old = program.Child(1)
    assert worker.call(program.use, old) == 1
    program.run("class Child:\n    shared = 'new'")
    assert worker.call(program.use, program.Child()) == "new"
    assert worker.call(program.use, old) == 1
    assert type(worker.call(program.same, old)) is type(old) is not program.Child


def test_a_class_that_is_only_an_annotation_is_not_brought_as_it_was_once(program, worker):
    program.run(
        "class User:\n    def me(self, child: Child):\n        pass\ndef use_both(user):\n    return Child.shared"
    )
    for value in (1, 2, 1, 2):
        program.Child.shared = value
        assert worker.call(program.use_both, program.User()) == value
        assert worker.call(program.use, unpickle(pickle_value([program.User(), program.Child()]))[1]) == value


# -- what is in a pack


def test_classes_that_name_each_other_are_in_one_pack(program, pickled):
    one = len(pickle_value(program.Child()).data)
    pickled.clear()
    both = pickle_value([program.Child(), program.Other(), program.Other])
    assert len(both.data) < one * 1.3
    assert pickled == []
    child, other, cls = unpickle(both)
    assert (type(child), type(other), cls) == (program.Child, program.Other, program.Other)


def test_a_class_that_only_its_pack_holds_is_found(program, worker):
    """What a worker's code has bound stays, and the class that came with a method by this name is nobody's."""
    program.run("def bind():\n    global Other\n    Other = None")
    program.run("def kinds(values):\n    return [type(value).__name__ for value in values]")
    worker.call(program.bind)
    for _ in range(3):
        assert worker.call(program.kinds, [program.Child(), program.Other()]) == ["Child", "Other"]
        assert worker.call(program.kinds, [program.Other(), program.Child()]) == ["Other", "Child"]


def test_a_large_class_goes_with_the_rest_of_the_payload(program, worker):
    program.run("TEXT = 'x' * 200_000\nclass Large:\n    def text(self):\n        return TEXT")
    program.run("class Larger:\n    def text(self):\n        return TEXT")
    payload = pickle_value([program.Large(), program.Larger()])
    assert len(payload.data) < 300_000
    assert classes._packs[program.Large].data is None
    assert worker.call(program.Larger.text, program.Larger()) == program.TEXT


def test_a_class_that_may_change_unseen_has_no_pack(program):
    program.Child.shared = []
    for _ in range(2):
        pickle_value(program.Child())
        assert classes._packs[program.Child].data is None
    program.Child.shared = 1
    pickle_value(program.Child())
    assert classes._packs[program.Child].data is not None


# -- from one worker to another


@pytest.fixture
def other_worker():
    made = Worker()
    yield made
    made.close()


def pass_on(monkeypatch, source, target, function, value):
    """Run `same` in one worker, and a function of its result, unopened, in another."""
    with monkeypatch.context() as patch:
        patch.setattr(peers, "unpickle", lambda payload: payload)
        result = source.call(*value)
    assert isinstance(result, Payload)
    blob = target._functions.blob_of(function)
    call = pickle_call(function, (Future(),), {}, {id(function): (load_function, (blob.key,))})
    return target.ask({blob.key: blob.data}, [call.payload, result])


@pytest.mark.parametrize("expression", ["Point(1)", "Pair(1)", "Color.RED", "Child(1)"])
def test_a_process_that_has_never_seen_the_class_opens_it(program, worker, other_worker, monkeypatch, expression):
    value = eval(expression, vars(program.module))
    for _ in range(3):
        worker.call(program.same, value)
        returned = pass_on(monkeypatch, worker, other_worker, program.same, (program.same, value))
        assert type(returned) is type(value)


def test_classes_that_calls_made_are_passed_on_and_known_again(program, worker, other_worker, monkeypatch):
    program.run(
        """
def make():
    global Made
    class Made:
        number = 7
        def get(self):
            return self.number
    return Made()
def get(made):
    return made.get()
def is_made(made):
    return type(made) is Made
"""
    )
    made = worker.call(program.make)
    assert made.get() == 7
    assert worker.call(program.is_made, made)
    assert other_worker.call(program.get, made) == 7
    assert pass_on(monkeypatch, worker, other_worker, program.get, (program.make,)) == 7
    assert type(worker.call(program.same, made)) is type(made)


# -- nothing is kept alive


def test_classes_of_a_functions_body_are_freed(program):
    program.run(
        """
def make():
    class Local:
        def me(self):
            return Local, Point
    return Local
"""
    )
    references = []
    for number in range(20):
        local = program.make()
        local.attribute = [] if number % 2 else 1  # with a list there is no pack
        unpickle(pickle_value(local()))
        pickle_value([local, program.Point()])
        references.append(weakref.ref(local))
        del local
    gc.collect()
    assert [reference() for reference in references] == [None] * 20


def test_so_are_those_that_calls_made(program, worker):
    program.run(
        """
def make():
    class Local:
        def me(self):
            return Local
    return Local()
def known():
    import gc
    from hpcpool.wire import classes
    gc.collect()
    return len(classes._packs), len(classes._opened), len(classes._received)
"""
    )
    worker.call(program.make)
    before = worker.call(program.known)
    references = [weakref.ref(type(worker.call(program.make))) for _ in range(20)]
    for _ in range(20):
        worker.call(program.same, program.make())
    gc.collect()
    assert [reference() for reference in references] == [None] * 20
    after = worker.call(program.known)
    assert max(new - old for new, old in zip(after, before, strict=True)) <= 2
