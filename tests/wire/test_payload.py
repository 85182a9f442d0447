from __future__ import annotations

import array
import collections
import dataclasses
import functools
import math
import multiprocessing
import operator
import pickle
import sys
import threading
import types
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpool.errors import UnsharableError
from hpcpool.processes.task_future import TaskFuture
from hpcpool.wire import payload as payload_module
from hpcpool.wire.importable import find
from hpcpool.wire.packing import INLINE_BYTES, Packed, Payload, pack, unpack
from hpcpool.wire.payload import (
    OUT_OF_BAND_BYTES,
    call_by_name,
    dumps_by_value,
    install_main,
    is_scalar,
    pickle_call,
    pickle_call_of_blob,
    pickle_value,
    unpickle,
    unpickle_call,
)


def received(payloads: list[Payload]) -> list[Payload]:
    """As they are at the other end: packed, sent, unpacked."""
    packed = pack(payloads)
    return unpack(bytes(packed.data), packed.layout, [bytearray(frame) for frame in packed.frames])


def travel(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call without dependencies as the call sees them."""
    call = pickle_call(operator.not_, args, kwargs)
    assert list(call.dependencies) == []
    function, args, kwargs = unpickle_call(received([call.payload]))
    assert function is operator.not_
    return args, kwargs


def travel_with(results: dict[Future[Any], Any], *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same, with dependencies."""
    call = pickle_call(operator.not_, args, kwargs)
    assert set(call.dependencies) == set(results)
    assert len(call.dependencies) == len(results)
    parts = [pickle_value(results[future]) for future in call.dependencies]
    _, args, kwargs = unpickle_call(received([call.payload, *parts]))
    return args, kwargs


# -- packing


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES])
def test_one_small_pickle_needs_no_layout(size):
    assert pack([Payload(b"x" * size)]) == Packed(b"x" * size, (), ())
    assert unpack(b"x" * size, (), []) == [Payload(b"x" * size)]


def test_what_is_large_travels_beside_the_message():
    large = b"x" * (INLINE_BYTES + 1)
    packed = pack([Payload(large, [b"y", large])])
    assert packed == Packed(b"y", (3, -1, 1, -1), [large, large], [])


PIECES = st.binary(max_size=40) | st.integers(INLINE_BYTES - 1, INLINE_BYTES + 2).map(lambda size: b"z" * size)
PAYLOADS = st.lists(st.builds(Payload, PIECES, st.lists(PIECES, max_size=4)), min_size=1, max_size=5)


@given(PAYLOADS)
def test_what_was_packed_can_be_unpacked(payloads):
    packed = pack(payloads)
    unpacked = unpack(packed.data, packed.layout, packed.frames)
    assert [(bytes(p.data), [bytes(b) for b in p.buffers]) for p in unpacked] == [
        (p.data, list(p.buffers)) for p in payloads
    ]


@given(PAYLOADS)
def test_inline_buffers_can_be_written_to(payloads):
    for unpacked in received(payloads):
        for buffer in unpacked.buffers:
            assert not memoryview(buffer).readonly


@given(
    data=st.binary(max_size=20),
    layout=st.lists(st.integers(-3, 8) | st.integers(-(2**63), 2**64), max_size=10),
    frames=st.lists(st.binary(max_size=3), max_size=4),
)
def test_a_layout_that_does_not_fit_is_a_value_error_and_nothing_else(data, layout, frames):
    try:
        payloads = unpack(data, layout, frames)
    except ValueError:
        return
    inline = sum(len(piece) for p in payloads for piece in (p.data, *p.buffers) if not is_one_of(piece, frames))
    assert inline == len(data)
    assert sum(is_one_of(piece, frames) for p in payloads for piece in (p.data, *p.buffers)) == len(frames)


def is_one_of(piece: object, frames: list[bytes]) -> bool:
    return any(piece is frame for frame in frames)


@pytest.mark.parametrize(
    ("layout", "frames"),
    [
        ((1,), []),
        ((0,), []),
        ((-1,), []),
        ((2, 3), []),
        ((1, -1), []),
        ((1, 2), []),
        ((1, 4), []),
        ((1, 3, 1), []),
        ((1, 3), [b"surplus"]),
        ((), [b"surplus"]),
        ((10**9, 3), []),
        ((1, 10**30), []),
    ],
)
def test_such_as_these(layout, frames):
    with pytest.raises(ValueError, match="layout"):
        unpack(b"abc", layout, frames)


# -- calls


@dataclasses.dataclass
class Box:
    content: Any


class Slotted:
    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


class Reduced:
    """Pickles in its own way."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        return (Reduced, (self.content,))


class Stateful:
    def __init__(self, content: Any) -> None:
        self.content = content

    def __getstate__(self) -> Any:
        return {"kept": self.content}

    def __setstate__(self, state: Any) -> None:
        self.content = state["kept"]


class Method:
    def __init__(self, content: Any) -> None:
        self.content = content

    def get(self) -> Any:
        return self.content


class OwnFuture(Future):  # type: ignore[type-arg]
    pass


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def test_arguments_arrive_as_they_are():
    args, kwargs = travel(1, "two", [3.0, None], {"four": (4,)}, self=5, fn=6, args=7, kwargs=8)
    assert args == (1, "two", [3.0, None], {"four": (4,)})
    assert kwargs == {"self": 5, "fn": 6, "args": 7, "kwargs": 8}


def test_an_object_that_occurs_twice_is_one_object_there():
    shared = [1]
    ((first, second, box), _) = travel(shared, shared, Box(shared))
    assert first is second is box.content


def test_an_object_may_contain_itself():
    loop: list[Any] = []
    loop.append(loop)
    ((arrived,), _) = travel(loop)
    assert arrived[0] is arrived


WRAPPINGS = {
    "itself": (lambda x: x, lambda x: x),
    "list": (lambda x: [0, [1, [x]]], lambda x: x[1][1][0]),
    "tuple": (lambda x: (0, (x,)), lambda x: x[1][0]),
    "dict value": (lambda x: {"a": {"b": x}}, lambda x: x["a"]["b"]),
    "deque": (lambda x: collections.deque([x]), lambda x: x[0]),
    "defaultdict": (lambda x: collections.defaultdict(list, a=x), lambda x: x["a"]),
    "dataclass": (Box, lambda x: x.content),
    "slots": (Slotted, lambda x: x.content),
    "reduce": (Reduced, lambda x: x.content),
    "getstate": (Stateful, lambda x: x.content),
    "namespace": (lambda x: types.SimpleNamespace(a=x), lambda x: x.a),
    "partial": (lambda x: functools.partial(max, x, key=x), lambda x: x.args[0]),
    "partial's keyword": (lambda x: functools.partial(max, key=x), lambda x: x.keywords["key"]),
    "bound method": (lambda x: Method(x).get, lambda x: x()),
    "object array": (lambda x: np.array([None, x], dtype=object), lambda x: x[1]),
    "exception": (lambda x: ValueError(x), lambda x: x.args[0]),
    "iterator": (lambda x: iter([x]), next),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("make_future", [Future, OwnFuture, TaskFuture])
def test_a_future_anywhere_in_the_arguments_becomes_its_result(wrapping, make_future):
    wrap, unwrap = WRAPPINGS[wrapping]
    future = make_future()
    args, kwargs = travel_with({future: "result"}, wrap(future), named=wrap(future))
    assert unwrap(args[0]) == "result"
    assert unwrap(kwargs["named"]) == "result"


def test_a_future_in_an_object_that_only_cloudpickle_can_carry_is_found():
    future: Future[Any] = Future()

    class Local:
        def __init__(self, content: Any) -> None:
            self.content = content

    (args, _) = travel_with({future: 7}, [Local(future)], lambda: None)
    assert args[0][0].content == 7


def test_the_function_of_a_call_may_carry_futures():
    future: Future[Any] = Future()
    call = pickle_call(functools.partial(pow, future), (2,), {})
    assert list(call.dependencies) == [future]
    function, args, kwargs = unpickle_call(received([call.payload, pickle_value(5)]))
    assert function(*args, **kwargs) == 25


def test_futures_are_numbered_in_the_order_in_which_they_are_met_and_once_each():
    futures = [Future() for _ in range(5)]
    call = pickle_call(print, (futures, futures[2]), {"again": futures[::-1]})
    assert list(call.dependencies) == futures
    parts = [pickle_value(n) for n in range(5)]
    _, args, kwargs = unpickle_call(received([call.payload, *parts]))
    assert args == ([0, 1, 2, 3, 4], 2)
    assert kwargs == {"again": [4, 3, 2, 1, 0]}


def test_the_same_result_at_two_places_is_one_object():
    future: Future[Any] = Future()
    (args, _) = travel_with({future: [1]}, future, [future])
    assert args[0] is args[1][0]


def test_results_may_be_large():
    future: Future[Any] = Future()
    result = np.arange(100_000)
    (args, _) = travel_with({future: result}, future)
    assert (args[0] == result).all()
    args[0][0] = 1


def test_futures_are_found_whether_they_are_done_or_not():
    call = pickle_call(print, (done(1), Future()), {})
    assert len(call.dependencies) == 2


def test_a_future_is_no_result():
    with pytest.raises(TypeError, match="join"):
        pickle_value([Future()])


def test_a_function_cannot_close_over_a_future():
    future: Future[Any] = Future()
    with pytest.raises(TypeError, match="pass the future as an argument"):
        dumps_by_value(lambda: future)


def test_a_call_that_cannot_be_opened_leaves_no_results_behind():
    future: Future[Any] = Future()
    call = pickle_call(print, (future,), {})
    with pytest.raises(pickle.UnpicklingError):
        unpickle_call([Payload(b"junk"), pickle_value(1)])
    with pytest.raises(IndexError):
        unpickle_call([call.payload])


# -- buffers


@pytest.mark.parametrize("size", [0, 10, OUT_OF_BAND_BYTES - 1, OUT_OF_BAND_BYTES, 1_000_000])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: np.arange(size, dtype=np.uint8),
        lambda size: bytearray(size),
        lambda size: bytes(size),
        lambda size: array.array("B", bytes(size)),
        lambda size: np.zeros((2, size), dtype=np.uint8)[:, ::2],
        lambda size: np.asfortranarray(np.ones((size // 8, 3))),
        lambda size: "é" * size,
    ],
    ids=["array", "bytearray", "bytes", "array.array", "strided", "fortran", "str"],
)
def test_data_of_any_size_arrives(make, size):
    data = make(size)
    ((arrived,), _) = travel(data)
    assert type(arrived) is type(data)
    assert np.array_equal(arrived, data) if isinstance(data, np.ndarray) else arrived == data


def test_large_arrays_travel_out_of_band_and_can_be_written_to_there():
    data = np.zeros(OUT_OF_BAND_BYTES)
    call = pickle_call(print, (data,), {})
    assert len(call.payload.data) < 1000
    assert [memoryview(buffer).nbytes for buffer in call.payload.buffers] == [data.nbytes]
    ((arrived,), _) = travel(data)
    arrived[0] = 1
    assert data[0] == 0


def test_an_array_that_must_not_be_written_to_must_not_be_there_either():
    data = np.zeros(OUT_OF_BAND_BYTES)
    data.flags.writeable = False
    ((arrived,), _) = travel(data)
    assert not arrived.flags.writeable


@pytest.mark.parametrize("size", [10, 100_000])
def test_arguments_are_captured(size):
    changed = np.zeros(size)
    view = changed[:]
    view.flags.writeable = False
    box = Box([0])
    raw = bytearray(size)
    call = pickle_call(print, (changed, view, box, raw), {})
    changed[:] = 9
    box.content[0] = 9
    raw[0] = 9
    _, args, _ = unpickle_call(received([call.payload]))
    assert args[0].sum() == args[1].sum() == 0
    assert args[2].content == [0]
    assert args[3][0] == 0


def test_results_are_not_copied():
    data = np.zeros(OUT_OF_BAND_BYTES)
    (buffer,) = pickle_value(data).buffers
    assert np.shares_memory(np.frombuffer(buffer, dtype=data.dtype), data)


def test_bytes_that_cannot_change_are_not_copied():
    data = np.frombuffer(bytes(OUT_OF_BAND_BYTES), dtype=np.uint8)
    (buffer,) = pickle_call(print, (pickle.PickleBuffer(data.base),), {}).payload.buffers
    assert memoryview(buffer).obj is data.base


# -- what cannot go by reference


def test_references_take_the_place_of_objects():
    def by_value():
        pass

    call = pickle_call(by_value, (1,), {}, {id(by_value): (operator.attrgetter, ("name",))})
    function, args, _ = unpickle_call([call.payload])
    assert type(function) is operator.attrgetter
    assert args == (1,)


def test_references_also_take_the_place_inside_partials_and_with_classes_by_value():
    def by_value():
        pass

    class Local:
        pass

    partial = functools.partial(by_value, 5)
    call = pickle_call(partial, (Local(),), {}, {id(by_value): (operator.attrgetter, ("name",))})
    function, args, _ = unpickle_call([call.payload])
    assert type(function.func) is operator.attrgetter
    assert type(args[0]).__name__ == "Local"


def test_text_that_only_looks_like_a_reference_to_main_does_no_harm():
    source = "if __name__ == '__main__': pass"
    assert travel(source, source.encode(), [source]) == ((source, source.encode(), [source]), {})


def test_what_lives_in_main_arrives_in_another_main(main, worker):
    main.run(
        "import enum, dataclasses\n"
        "class Color(enum.Enum):\n    RED = 1\n"
        "@dataclasses.dataclass\nclass Point:\n    x: int\n"
        "def f(color, point, cls):\n    return color.name, point.x, cls.__name__, Color.RED is color\n"
    )
    assert worker.call(main.f, main.Color.RED, main.Point(3), main.Point) == ("RED", 3, "Point", True)
    assert worker.call(main.Point, 4) == main.Point(4)
    assert worker.call(main.Color, 1) is main.Color.RED
    assert worker.call(functools.partial(main.f, main.Color.RED), main.Point(1), main.Color)[2] == "Color"


def test_a_worker_has_a_main_of_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    install_main()
    assert set(vars(sys.modules["__main__"])) <= {"__name__", "__doc__", "__package__", "__loader__", "__spec__"}


# -- errors


class Explosive:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def test_what_the_users_code_raises_comes_out():
    with pytest.raises(ZeroDivisionError):
        pickle_call(print, (Explosive(ZeroDivisionError()),), {})
    with pytest.raises(KeyboardInterrupt):
        pickle_call(print, (Explosive(KeyboardInterrupt()),), {})


def test_an_exit_while_pickling_does_not_end_the_program():
    with pytest.raises(pickle.PicklingError, match="SystemExit"):
        pickle_call(print, (Explosive(SystemExit(3)),), {})


def test_what_has_no_pickle_says_so():
    with pytest.raises(TypeError, match="lock"):
        pickle_call(print, (threading.Lock(),), {})
    with pytest.raises(TypeError, match="generator"):
        pickle_call(print, ((x for x in ()),), {})


@pytest.mark.parametrize("name", ["Lock", "Queue", "Event", "Semaphore", "Condition", "Barrier"])
def test_what_only_children_can_share_is_an_error_that_names_the_alternative(name):
    context = multiprocessing.get_context("spawn")
    args = (1,) if name == "Barrier" else ()
    shared = getattr(context, name)(*args)
    try:
        with pytest.raises(UnsharableError, match=r"multiprocessing.Manager\(\)"):
            pickle_call(print, (shared,), {})
    finally:
        if name == "Queue":
            shared.close()
            shared.join_thread()


def test_nesting_beyond_pickles_depth_is_an_error_of_that_call():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises((RecursionError, pickle.PicklingError)):
        pickle_call(print, (deep,), {})


def test_values_are_opened_as_often_as_one_likes():
    payload = pickle_value({"a": np.zeros(100_000)})
    for _ in range(2):
        assert unpickle(payload)["a"].sum() == 0


def test_a_module_registered_by_value_goes_by_value(monkeypatch):
    import cloudpickle

    module = types.ModuleType("registered_for_a_test")
    exec("def f():\n    return 'by value'", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert payload_module.by_value.is_importable(module.f)
    cloudpickle.register_pickle_by_value(module)
    try:
        call = pickle_call(module.f, (), {})
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, module.__name__)
    assert unpickle_call([call.payload])[0]() == "by value"


def test_what_is_nested_too_deeply_is_a_recursion_error_as_in_the_standard_library():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(RecursionError):
        pickle_value(nested)
    with pytest.raises(RecursionError):
        pickle_call(len, (nested,), {})


# -- the short ways


@pytest.mark.parametrize("value", [None, True, False, 0, 255, 256, 65536, -1, 2**31 - 1, -(2**31), 1.5, float("inf")])
def test_a_pickled_scalar_is_told_from_its_bytes(value):
    assert is_scalar(pickle.dumps(value, 5))


@pytest.mark.parametrize("value", [2**31, "a", "", b"", (), (1,), (1, 2), [None], 1j, abs, ValueError(1), {1: None}])
def test_what_may_run_code_or_take_memory_is_no_scalar(value):
    assert not is_scalar(pickle.dumps(value, 5))


@pytest.mark.parametrize("data", [b"", b"\x80\x05", b"\x80\x05K\x01K", b"\x80\x05Ncos\nsystem\n.", b"\x80\x05\x95"])
def test_what_only_begins_like_a_scalar_is_none(data):
    assert not is_scalar(data)


def test_a_function_with_a_name_travels_by_it_and_its_simple_arguments_as_a_pickle():
    call = call_by_name(math.hypot, (3, 4.0))
    assert call is not None
    assert find(call.function)(*pickle.loads(call.payload.data)) == 5.0


def test_so_do_arguments_that_are_futures():
    one, other = Future(), Future()
    call = call_by_name(max, (one, 2, other, one))
    assert call is not None
    assert list(call.dependencies) == [one, other]
    payloads = [call.payload, pickle_value("first"), pickle_value([3])]
    assert unpickle_call(payloads, lambda: find(call.function)) == (max, ("first", 2, [3], "first"), {})


opened: list[str] = []


def note(name: str) -> str:
    opened.append(name)
    return name


class Noting:
    """Notes when it is unpickled."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> Any:
        return note, (self._name,)


def test_the_function_of_a_call_is_found_behind_the_results_and_before_the_arguments():
    opened.clear()
    payloads = [Payload(pickle.dumps((Noting("argument"),))), Payload(pickle.dumps(Noting("result")))]
    function, args, kwargs = unpickle_call(payloads, lambda: note("function") and max)
    assert (function, args, kwargs) == (max, ("argument",), {})
    assert opened == ["result", "function", "argument"]


class CountingStore:
    """Takes the place of a store: counts how often something is shared."""

    def __init__(self) -> None:
        self.shared = 0

    def share(self, raw: memoryview) -> bytes:
        self.shared += 1
        return bytes(raw)


@pytest.mark.parametrize(
    "pickled",
    [
        lambda args, store: pickle_call(max, args, {}, store=store),
        lambda args, store: pickle_call_of_blob((b"key", b""), args, {}, store),
    ],
)
def test_a_large_argument_beside_a_future_is_shared_once(pickled):
    future, store = Future(), CountingStore()
    call = pickled((np.zeros(100_000), future, future), store)
    assert store.shared == 1
    assert list(call.dependencies) == [future]
    finds = (lambda: max) if call.function else None
    _, (array, *results), _ = unpickle_call([call.payload, pickle_value(5)], finds)
    assert array.shape == (100_000,)
    assert results == [5, 5]


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (math.hypot, ([3],)),
        (max, (Future(), [3])),
        (max, ([Future()],)),
        (math.hypot, (1 << 300,)),
        (len, ("a" * 20_000,)),
        (max, ("a" * 9_000, "b" * 9_000)),
        ([].append, (1,)),
        (str.upper, ("a",)),
        (lambda: None, ()),
        (functools.partial(abs, 1), ()),
        (Future.result, ()),
    ],
)
def test_other_calls_are_pickled_as_a_whole(fn, args):
    assert call_by_name(fn, args) is None


def test_a_function_whose_name_leads_elsewhere_is_not_called_by_it(monkeypatch):
    original = math.floor
    monkeypatch.setattr(math, "floor", lambda number: "another")
    assert call_by_name(original, (1.5,)) is None
