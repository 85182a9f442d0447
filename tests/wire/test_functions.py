from __future__ import annotations

import functools
import gc
import json
import math
import operator
import pickle
import threading
import types
import weakref
from concurrent.futures import Future
from typing import Any

import cloudpickle
import pytest

from hpcpool.wire import functions
from hpcpool.wire.fingerprint import Fingerprint
from hpcpool.wire.functions import (
    LOADED_LIMIT,
    Blob,
    FunctionCache,
    called_function,
    function_within,
    load_function,
)
from hpcpool.wire.payload import pickle_call_of_blob, pickle_value, unpickle_call


def module_function() -> None:
    """Importable: goes by reference."""


class Counting(FunctionCache):
    """Counts how often something is pickled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.pickled = 0
        original = functions.payload.dumps_by_value

        def dumps(obj: Any) -> bytes:
            self.pickled += 1
            return original(obj)

        monkeypatch.setattr(functions.payload, "dumps_by_value", dumps)


@pytest.fixture
def cache(monkeypatch):
    return Counting(monkeypatch)


@pytest.fixture
def space():
    """The namespace of a user's program that is not `__main__`, as of a notebook's kernel or an `exec`."""
    return Namespace()


class Namespace(dict):
    def __init__(self) -> None:
        super().__init__(__name__="users_program")

    def run(self, source: str) -> None:
        exec(source, self)


# -- nothing has changed: nothing is pickled


def same_again(cache: Counting, function: types.FunctionType) -> None:
    blob, before = cache.blob_of(function), cache.pickled
    assert cache.blob_of(function) is blob
    assert cache.pickled == before, "pickled again although nothing can have changed"


def test_a_function_of_its_own_is_pickled_once(cache):
    same_again(cache, lambda x, y=2, *, z: x + y + z)


@pytest.mark.parametrize(
    "value",
    [1, 2.5, 1j, "text", b"bytes", True, None, ..., (1, ("a", None)), frozenset({1}), math, len, json.dumps, int],
)
def test_so_is_one_that_names_only_what_cannot_change(cache, space, value):
    space["value"] = value
    space.run("def f(a=value):\n    return value, a\ndef outer(b):\n    return lambda: b\ng = outer(value)")
    same_again(cache, space["f"])
    same_again(cache, space["g"])


def test_so_is_one_that_calls_others_like_it(cache, space):
    space.run("def g():\n    return h()\ndef h():\n    return g() if False else 1\ndef f():\n    return g()")
    same_again(cache, space["f"])


def test_so_is_one_that_names_what_does_not_exist(cache, space):
    space.run("def f():\n    return missing")
    same_again(cache, space["f"])


def test_so_is_one_whose_closure_is_itself(cache):
    def recursive(n):
        return recursive(n - 1) if n else 0

    same_again(cache, recursive)


def test_an_unchanged_function_that_might_have_changed_is_pickled_again_but_is_the_same_blob(cache, space):
    space.run("table = {1: 2}\ndef f():\n    return table[1]")
    blob = cache.blob_of(space["f"])
    assert cache.blob_of(space["f"]) is blob
    assert cache.pickled == 2


def test_two_functions_with_the_same_content_have_the_same_key(cache):
    def make():
        return lambda x: x + 1

    first, second = make(), make()
    assert cache.blob_of(first) == cache.blob_of(second)


# -- something has changed: it is noticed


class Thing:
    def __init__(self) -> None:
        self.value = 1


CHANGES = {
    "a global": ("X = 1\ndef f():\n    return X", "X = 2"),
    "a global that did not exist": ("def f():\n    return X", "X = 2"),
    "a global that is gone": ("X = 1\ndef f():\n    return X", "del X"),
    "a global of a nested function": ("X = 1\ndef f():\n    return [lambda: X]", "X = 2"),
    "a global list in place": ("X = [1]\ndef f():\n    return X", "X.append(2)"),
    "a global dict in place": ("X = {}\ndef f():\n    return X", "X[1] = 2"),
    "a global array in place": ("import numpy\nX = numpy.zeros(3)\ndef f():\n    return X", "X[0] = 1"),
    "a global bytearray in place": ("X = bytearray(1)\ndef f():\n    return X", "X[0] = 1"),
    "a list in a global tuple": ("X = (1, [2])\ndef f():\n    return X", "X[1].append(3)"),
    "an attribute of a global object": (
        "import types\nX = types.SimpleNamespace(a=1)\ndef f():\n    return X.a",
        "X.a = 2",
    ),
    "a method of a global object": ("X = {}\nget = X.get\ndef f():\n    return get(1)", "X[1] = 2"),
    "a method of a global object of ours": (
        "class C:\n    def m(self):\n        return self.v\nX = C()\nX.v = 1\nm = X.m\ndef f():\n    return m()",
        "X.v = 2",
    ),
    "an attribute of a global class": ("class C:\n    a = 1\ndef f():\n    return C.a", "C.a = 2"),
    "a method of a global class": (
        "class C:\n    def m(self):\n        return 1\ndef f():\n    return C().m()",
        "C.m = lambda self: 2",
    ),
    "a global function": ("def g():\n    return 1\ndef f():\n    return g()", "def g():\n    return 2"),
    "the code of a global function": (
        "def g():\n    return 1\ndef f():\n    return g()",
        "g.__code__ = (lambda: 2).__code__",
    ),
    "a global of a global function": ("X = 1\ndef g():\n    return X\ndef f():\n    return g()", "X = 2"),
    "a global far down": (
        "X = 1\ndef h():\n    return X\ndef g():\n    return h()\ndef f():\n    return g()",
        "X = 2",
    ),
    "a default": ("def f(a=1):\n    return a", "f.__defaults__ = (2,)"),
    "a default in place": ("def f(a=[1]):\n    return a", "f.__defaults__[0].append(2)"),
    "a keyword's default": ("def f(*, a=1):\n    return a", "f.__kwdefaults__['a'] = 2"),
    "a new keyword's default": ("def f(*, a):\n    return a", "f.__kwdefaults__ = {'a': 2}"),
    "a default of a global function": ("def g(a=1):\n    return a\ndef f():\n    return g()", "g.__defaults__ = (2,)"),
    "the code": ("def f():\n    return 1", "f.__code__ = (lambda: 2).__code__"),
    "an attribute": ("def f():\n    return f.a\nf.a = 1", "f.a = 2"),
    "a new attribute": ("def f():\n    return f.a", "f.a = 2"),
    "an attribute of a global function": ("def g():\n    pass\ndef f():\n    return g.a", "g.a = 2"),
    "a closure": (
        "def make():\n    n = 1\n    def f():\n        return n\n    def change():\n        nonlocal n\n        n = 2\n"
        "    return f, change\nf, change = make()",
        "change()",
    ),
    "a closure in place": (
        "def make(n):\n    return lambda: n\nL = [1]\nf = make(L)",
        "L.append(2)",
    ),
    "a closure of a closure": (
        "def make():\n    n = 1\n    def g():\n        return n\n    def f():\n        return g()\n"
        "    def change():\n        nonlocal n\n        n = 2\n    return f, change\nf, change = make()",
        "change()",
    ),
    "a closure that was empty": (
        "def make():\n    def f():\n        return n\n    def change():\n        nonlocal n\n        n = 2\n"
        "    if False:\n        n = 1\n    return f, change\nf, change = make()",
        "change()",
    ),
    "a partial": (
        "import functools\nL = [1]\np = functools.partial(sum, L)\ndef f():\n    return p()",
        "L.append(2)",
    ),
    "a module that cannot be imported": (
        "import types\nM = types.ModuleType('made_here')\nM.a = 1\ndef f():\n    return M.a",
        "M.a = 2",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_noticed(cache, space, what):
    program, change = CHANGES[what]
    space.run(program)
    before = cache.blob_of(space["f"])
    assert cache.blob_of(space["f"]).key == before.key
    space.run(change)
    after = cache.blob_of(space["f"])
    assert after.key != before.key, f"{what} has changed, and the old function would be sent"
    assert after.data != before.data


def test_a_change_back_is_noticed_too(cache, space):
    space.run("X = 1\ndef f():\n    return X")
    first = cache.blob_of(space["f"])
    space["X"] = 2
    second = cache.blob_of(space["f"])
    space["X"] = 1
    assert cache.blob_of(space["f"]) == first != second


def test_an_equal_value_in_the_place_of_another_is_a_change(cache, space):
    space["X"] = 1
    space.run("def f():\n    return X")
    first = cache.blob_of(space["f"])
    space["X"] = True
    assert cache.blob_of(space["f"]).key != first.key
    space["X"] = 1.0
    assert cache.blob_of(space["f"]).key != first.key


def test_a_change_while_it_is_pickled_is_seen_the_next_time(space, monkeypatch):
    """By another thread, say: what the fingerprint has seen must not be newer than the pickle."""
    cache = FunctionCache()
    space.run("X = 1\ndef f():\n    return X")
    original = functions.payload.dumps_by_value

    def dumps_and_change(obj: Any) -> bytes:
        data = original(obj)
        space["X"] = 2
        return data

    with monkeypatch.context() as patch:
        patch.setattr(functions.payload, "dumps_by_value", dumps_and_change)
        stale = cache.blob_of(space["f"])
    assert cache.blob_of(space["f"]).key != stale.key


def test_a_new_function_in_the_place_of_a_freed_one_is_another(cache):
    """`id` alone would confuse them."""
    keys = set()
    for number in range(50):
        function = eval(f"lambda: {number}")
        keys.add(cache.blob_of(function).key)
        del function
    assert len(keys) == 50


# -- nothing is kept alive


@pytest.mark.parametrize(
    "program",
    [
        "def f():\n    return 1",
        "X = 1\ndef f():\n    return X",
        "def f():\n    return f",
        "def make():\n    def f():\n        return f\n    return f\nf = make()",
        "def make(n):\n    return lambda: n\nf = make(5)",
        "def make(n):\n    return lambda: n\nf = make([5])",
        "def g():\n    return f\ndef f():\n    return g",
        "def f(g=lambda: 1):\n    return g()",
    ],
)
def test_a_function_is_freed_and_forgotten(program):
    cache = FunctionCache()
    space = Namespace()
    space.run(program)
    reference = weakref.ref(space["f"])
    blob = cache.blob_of(space["f"])
    cache.blob_of(space["f"])
    assert isinstance(blob, Blob)
    del space
    gc.collect()
    assert reference() is None
    assert cache._entries == {}


def test_what_a_function_names_is_freed_with_it():
    cache = FunctionCache()
    thing = Thing()

    def make(held):
        return lambda: held.value

    function = make(thing)
    cache.blob_of(function)
    reference = weakref.ref(thing)
    del thing, function
    gc.collect()
    assert reference() is None


def test_many_threads_may_use_a_cache_at_once(space):
    cache = FunctionCache()
    space.run("X = 1\ndef f():\n    return X")
    expected = cache.blob_of(space["f"]).key
    keys = []
    start = threading.Barrier(4)

    def use() -> None:
        start.wait()
        for _ in range(50):
            local = eval("lambda: 1")
            cache.blob_of(local)
            keys.append(cache.blob_of(space["f"]).key)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(keys) == {expected}
    assert len(keys) == 200


def test_what_cannot_be_pickled_says_so_each_time(cache, space):
    space.run("lines = (line for line in ())\ndef f():\n    return lines")
    for _ in range(2):
        with pytest.raises(TypeError, match="generator"):
            cache.blob_of(space["f"])


# -- which function a call is about


def test_a_function_that_must_go_by_value_is_found_under_partials():
    def local():
        pass

    assert function_within(local) is local
    assert function_within(functools.partial(functools.partial(local, 1), 2)) is local


@pytest.mark.parametrize("fn", [len, json.dumps, module_function, int, operator.itemgetter(1), Thing().__init__])
def test_what_goes_by_reference_or_is_no_function_is_left_to_pickle(fn):
    assert function_within(fn) is None


def test_a_fingerprint_of_what_may_change_unseen_is_not_stable(space):
    space.run("X = []\ndef f():\n    return X\ndef g():\n    return 1")
    assert not Fingerprint(space["f"]).stable
    assert Fingerprint(space["g"]).stable
    assert Fingerprint(space["g"]).still_holds()


# -- in a worker


@pytest.fixture
def store(monkeypatch):
    """Blobs that a worker can read, and how often it has read each."""
    blobs: dict[bytes, bytes] = {}
    reads: list[bytes] = []

    def source(key: bytes) -> bytes:
        reads.append(key)
        return blobs[key]

    monkeypatch.setattr(functions, "blob_source", source)
    monkeypatch.setattr(functions, "_loaded", type(functions._loaded)())
    return types.SimpleNamespace(blobs=blobs, reads=reads)


def test_a_function_is_opened_once(store):
    store.blobs[b"key"] = cloudpickle.dumps(lambda x: x + 1)
    function = load_function(b"key")
    assert function(1) == 2
    assert load_function(b"key") is function
    assert store.reads == [b"key"]


def test_a_function_by_value_is_named_by_its_blob_and_its_simple_arguments_travel_alone(store):
    key, data = FunctionCache().blob_of(lambda one, other: one - other)
    store.blobs[key] = data
    call = pickle_call_of_blob(Blob(key, data), (7, Future()), {})
    assert call.blobs == ((key, data),)
    function, args, _ = unpickle_call([call.payload, pickle_value(3)], lambda: called_function(call.function, [key]))
    assert function(*args) == 4


def test_so_do_other_arguments_unless_the_function_is_among_them(store):
    def function(itself, items):
        return function is itself, items

    key, data = FunctionCache().blob_of(function)
    store.blobs[key] = data
    references = {id(function): (load_function, (key,))}
    call = pickle_call_of_blob(Blob(key, data), ([1.5], {"a": 2}), references)
    assert pickle.loads(call.payload.data) == ([1.5], {"a": 2})
    call = pickle_call_of_blob(Blob(key, data), (function, [3]), references)
    assert len(call.payload.data) < len(data)
    found, args, _ = unpickle_call([call.payload], lambda: called_function(call.function, [key]))
    assert args == (found, [3])


def test_an_exit_while_arguments_are_pickled_is_an_error_of_pickling():
    class Leaving:
        def __reduce__(self):
            raise SystemExit(3)

    with pytest.raises(pickle.PicklingError, match=r"SystemExit\(3\)"):
        pickle_call_of_blob(Blob(b"key", b""), (Leaving(),), {})


def test_other_names_are_those_of_modules(store):
    assert called_function("math:hypot", ()) is math.hypot


def test_the_functions_that_were_used_last_stay_open(store):
    for number in range(LOADED_LIMIT + 1):
        store.blobs[b"%d" % number] = cloudpickle.dumps(lambda: None)
    for number in range(LOADED_LIMIT):
        load_function(b"%d" % number)
    load_function(b"0")
    load_function(b"%d" % LOADED_LIMIT)
    assert len(functions._loaded) == LOADED_LIMIT
    store.reads.clear()
    load_function(b"0")
    assert store.reads == []
    load_function(b"1")
    assert store.reads == [b"1"]


def test_a_function_that_cannot_be_opened_says_so_each_time(store):
    store.blobs[b"key"] = b"junk"
    for _ in range(2):
        with pytest.raises(Exception, match=r"pickle|load key"):
            load_function(b"key")


def test_a_process_without_a_source_of_functions_says_so():
    with pytest.raises(LookupError, match="6b6579"):
        load_function(b"key")
