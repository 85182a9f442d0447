from __future__ import annotations

import errno
import subprocess
import sys
import threading
import traceback
import types
from concurrent.futures.process import _RemoteTraceback
from typing import Any

import pytest

from hpcpool.errors import BashError, PayloadError, RemoteError, WorkerCrashed
from hpcpool.wire.failure_record import failure_in_words
from hpcpool.wire.failures import pickle_failure, remote_traceback, unpickle_failure, unpickle_payload_error
from hpcpool.wire.packing import Payload, pack, unpack


def raised(error: BaseException) -> BaseException:
    """An exception as it comes out of a call."""
    try:
        raise error
    except BaseException as caught:
        return caught


def travel(error: BaseException) -> BaseException:
    packed = pack([pickle_failure(raised(error))])
    (payload,) = unpack(bytes(packed.data), packed.layout, list(packed.frames))
    return unpickle_failure(payload)


# -- as they were


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad", 3),
        KeyError("missing"),
        ZeroDivisionError(),
        OSError(errno.ENOENT, "No such file", "/x"),
        FileNotFoundError(errno.ENOENT, "No such file", "/x", None, "/y"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        SyntaxError("bad", ("file.py", 1, 2, "text", 1, 3)),
        ImportError("no", name="module", path="/p"),
        StopIteration(5),
        AttributeError("no", name="n", obj=[1]),
        subprocess.CalledProcessError(3, ["cmd"], b"out", b"err"),
        BashError("failed", cmd="x", returncode=3, stdout="o", stderr="e"),
        WorkerCrashed("died", exit_code=3, host="h"),
        SystemExit(3),
        KeyboardInterrupt("stop"),
        GeneratorExit(),
        AssertionError(["any", {"thing": 1}]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_comes_back_as_it_was(error):
    back = travel(error)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert vars(back) == vars(error)
    for name in "errno filename filename2 object reason lineno text name path value code".split():
        if not (name == "name" and isinstance(error, AttributeError)):  # the interpreter does not pickle it before 3.12
            assert getattr(back, name, None) == getattr(error, name, None)


def test_attributes_and_notes_come_along():
    error = ValueError("bad")
    error.extra = {"a": [1]}  # type: ignore[attr-defined]
    error.add_note("first")
    error.add_note("second")
    back = travel(error)
    assert back.extra == {"a": [1]}  # type: ignore[attr-defined]
    assert back.__notes__ == ["first", "second"]


def test_its_cause_is_the_remote_traceback_exactly_as_in_the_standard_library():
    back = travel(ValueError("bad"))
    assert type(back.__cause__) is _RemoteTraceback
    text = str(back.__cause__)
    assert text.startswith('\n"""\nTraceback (most recent call last):')
    assert "raise error" in text
    assert text.endswith('ValueError: bad\n"""')


def test_the_remote_traceback_tells_of_causes_contexts_and_notes():
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        error.add_note("a note")
        text = str(unpickle_failure(pickle_failure(error)).__cause__)
    assert "KeyError: 'inner'" in text
    assert "direct cause" in text
    assert "a note" in text


def test_its_frames_can_be_looked_at():
    def deepest(n):
        return 1 // n

    try:
        deepest(0)
    except ZeroDivisionError as error:
        back = unpickle_failure(pickle_failure(error))
    names = [frame.name for frame in traceback.extract_tb(back.__traceback__)]
    assert names == ["test_its_frames_can_be_looked_at", "deepest"]
    assert traceback.extract_tb(back.__traceback__)[-1].filename == __file__


def test_our_own_frames_can_be_left_out():
    def users():
        return 1 // 0

    def ours():
        return users()

    try:
        ours()
    except ZeroDivisionError as error:
        back = unpickle_failure(pickle_failure(error, own_frames=2))
    assert [frame.name for frame in traceback.extract_tb(back.__traceback__)] == ["users"]
    assert "ours" not in str(back.__cause__)


def test_more_frames_left_out_than_there_are_is_no_error():
    back = unpickle_failure(pickle_failure(raised(ValueError("x")), own_frames=10))
    assert back.__traceback__ is None
    assert str(back) == "x"


def test_an_exception_that_was_never_raised_comes_back_too():
    back = unpickle_failure(pickle_failure(ValueError("x")))
    assert (type(back), str(back), back.__traceback__) == (ValueError, "x", None)


@pytest.mark.parametrize("depth", [90, 150, 500, 5000])
def test_a_deep_traceback_travels_with_its_ends(depth):
    def go_down(n):
        return go_down(n - 1) if n else 1 // 0

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 1000)
    try:
        go_down(depth)
    except ZeroDivisionError as error:
        caught = error
    finally:
        sys.setrecursionlimit(limit)
    back = unpickle_failure(pickle_failure(caught))
    lines = [frame.line for frame in traceback.extract_tb(back.__traceback__)]
    assert type(back) is ZeroDivisionError
    assert lines[0] == "go_down(depth)"
    assert lines[-1] == "return go_down(n - 1) if n else 1 // 0"
    assert len(lines) <= 100


def test_a_call_that_recurses_without_end_is_a_recursion_error():
    def recurse():
        recurse()

    try:
        recurse()
    except RecursionError as error:
        back = unpickle_failure(pickle_failure(error))
    assert type(back) is RecursionError
    assert "maximum recursion depth" in str(back)


# -- groups


class TwoArguments(Exception):
    def __init__(self, number, text):
        super().__init__(f"{number}: {text}")
        self.number = number
        self.text = text


class OwnGroup(ExceptionGroup):
    def derive(self, excs):
        return OwnGroup(self.message, excs)


@pytest.mark.parametrize(
    ("kind", "first"), [(ExceptionGroup, ValueError), (BaseExceptionGroup, KeyboardInterrupt), (OwnGroup, ValueError)]
)
def test_a_group_comes_back_with_all_that_is_in_it(kind, first):
    inner = ExceptionGroup("inner", [KeyError("k")])
    back = travel(kind("all", [first(1), inner]))
    assert type(back) is kind
    assert back.message == "all"
    assert [type(error) for error in back.exceptions] == [first, ExceptionGroup]
    assert back.exceptions[1].exceptions[0].args == ("k",)
    assert back.split(KeyError)[0] is not None


def test_a_group_may_contain_what_can_only_be_rebuilt_without_init():
    back = travel(ExceptionGroup("all", [TwoArguments(1, "x"), ValueError(2)]))
    assert "TwoArguments" in str(back.__cause__)
    assert "1: x" in str(back.__cause__)
    assert isinstance(back, RemoteError)
    assert str(back).startswith("ExceptionGroup: all (2 sub-exceptions)")


# -- classes whose __init__ takes other arguments


class OneArgumentMore(Exception):
    def __init__(self, code, text="m"):
        super().__init__(f"{code}: {text}")
        self.code = code


class KeywordOnly(Exception):
    def __init__(self, *, code):
        super().__init__()
        self.code = code


class NoSuperInit(Exception):
    def __init__(self, a, b):
        self.a = a
        self.b = b


class OwnOSError(OSError):
    def __init__(self, path):
        super().__init__(errno.ENOENT, "missing", path)


class OwnExit(SystemExit):
    def __init__(self, why, code):
        super().__init__(code)
        self.why = why


class OwnUnicodeError(UnicodeDecodeError):
    def __init__(self, data):
        super().__init__("ascii", data, 0, 1, "because")


class WithSlots(Exception):
    __slots__ = ("code",)

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class WithProperty(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a}{b}")
        self._a = a

    @property
    def a(self):
        return self._a


class OwnReduce(Exception):
    def __init__(self, a, b):
        super().__init__(a, b, "made here")
        self.a = a

    def __reduce__(self):
        return (OwnReduce, (self.a, "again"))


ODD = [
    (TwoArguments(1, "x"), {"number": 1, "text": "x"}),
    (OneArgumentMore(3), {"code": 3}),
    (KeywordOnly(code=5), {"code": 5}),
    (NoSuperInit(1, 2), {"a": 1, "b": 2}),
    (OwnOSError("/x"), {"errno": errno.ENOENT, "strerror": "missing", "filename": "/x"}),
    (OwnExit("so", 4), {"code": 4, "why": "so"}),
    (OwnUnicodeError(b"\xff"), {"object": b"\xff", "reason": "because", "encoding": "ascii", "end": 1}),
    (WithSlots(7, "t"), {"code": 7}),
    (WithProperty(1, 2), {"a": 1}),
]


@pytest.mark.parametrize(("error", "attributes"), ODD, ids=lambda value: type(value).__name__)
def test_it_comes_back_without_its_init_being_called(error, attributes):
    back = travel(error)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert {name: getattr(back, name) for name in attributes} == attributes


def test_an_own_reduce_is_respected_if_it_says_the_same():
    back = travel(OwnReduce(1, 2))
    assert type(back) is OwnReduce
    assert back.a == 1
    assert str(back) == str(OwnReduce(1, 2))


# -- what cannot be pickled


class Unpicklable:
    def __reduce__(self):
        raise TypeError("never")

    def __repr__(self):
        return "<unpicklable>"


class Opaque:
    """Pickles, but cannot be rebuilt."""

    def __reduce__(self):
        return (int, ("not a number",))

    def __repr__(self):
        return "<opaque>"


@pytest.mark.parametrize("value", [Unpicklable(), Opaque(), threading.Lock()], ids=lambda value: type(value).__name__)
def test_what_an_exception_carries_is_replaced_by_its_text_if_it_must_be(value):
    error = ValueError("bad", value)
    error.held = value  # type: ignore[attr-defined]
    error.kept = 5  # type: ignore[attr-defined]
    back = travel(error)
    assert type(back) is ValueError
    assert back.args == ("bad", repr(value))
    assert back.held == repr(value)  # type: ignore[attr-defined]
    assert back.kept == 5  # type: ignore[attr-defined]


class BrokenReduce(Exception):
    def __reduce__(self):
        raise ZeroDivisionError("in __reduce__")


class ReducesToSomethingElse(Exception):
    def __reduce__(self):
        return (ValueError, ("another",))


class ReducesToNoException(Exception):
    def __reduce__(self):
        return (int, ("5",))


@pytest.mark.parametrize("kind", [BrokenReduce, ReducesToSomethingElse, ReducesToNoException])
def test_a_broken_reduce_is_not_needed(kind):
    back = travel(kind("text"))
    assert type(back) is kind
    assert back.args == ("text",)


class NewNeedsMore(Exception):
    def __new__(cls, *args):
        if len(args) != 3:
            raise TypeError("three arguments")
        return super().__new__(cls, *args)

    def __init__(self, a, b, c):
        super().__init__(f"{a}{b}{c}")


def test_what_cannot_be_rebuilt_at_all_is_told_in_words():
    back = travel(NewNeedsMore(1, 2, 3))
    assert type(back) is RemoteError
    assert back.type_name == f"{__name__}.NewNeedsMore"
    assert str(back) == f"{__name__}.NewNeedsMore: 123 (it cannot be pickled)"
    assert "NewNeedsMore: 123" in back.traceback_text
    assert "NewNeedsMore: 123" in str(back.__cause__)


class BrokenText(Exception):
    def __str__(self):
        raise ZeroDivisionError("in __str__")

    __repr__ = __str__


class BrokenTextAndPickle(BrokenText):
    def __new__(cls, *args):
        if not args:
            raise TypeError("no")
        return super().__new__(cls, *args)

    def __init__(self, text):
        super().__init__()


@pytest.mark.parametrize("kind", [BrokenText, BrokenTextAndPickle])
def test_a_broken_str_and_repr_break_nothing_else(kind):
    back = travel(kind("x"))
    assert isinstance(back, kind | RemoteError)
    assert "BrokenText" in str(back.__cause__)


def test_a_broken_repr_of_what_it_carries_breaks_nothing_else():
    class BrokenRepr(Unpicklable):
        def __repr__(self):
            raise ZeroDivisionError

    back = travel(ValueError(BrokenRepr()))
    assert type(back) is ValueError
    assert back.args == (f"<{BrokenRepr.__qualname__} whose repr() raised ZeroDivisionError>",)


class Falsey(Exception):
    def __bool__(self):
        return False

    def __len__(self):
        return 0


def test_a_falsey_exception_is_one():
    back = travel(Falsey("x"))
    assert type(back) is Falsey
    assert back.args == ("x",)
    assert back.__cause__ is not None


class NeverEqual(Exception):
    def __eq__(self, other):
        raise TypeError("do not compare")

    __hash__ = None  # type: ignore[assignment]


def test_an_exception_that_cannot_be_compared_or_hashed_is_one():
    assert type(travel(NeverEqual("x"))) is NeverEqual


# -- what cannot be opened here


def test_an_exception_of_a_class_that_is_not_here_is_told_in_words(monkeypatch):
    module = types.ModuleType("only_there")
    exec("class Odd(Exception):\n    pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_there", module)
    payload = pickle_failure(raised(module.Odd("text")))
    monkeypatch.delitem(sys.modules, "only_there")
    back = unpickle_failure(payload)
    assert type(back) is RemoteError
    assert back.type_name == "only_there.Odd"
    assert str(back).startswith("only_there.Odd: text (it cannot be rebuilt here: ModuleNotFoundError")
    assert "only_there.Odd: text" in back.traceback_text


def test_an_exception_of_main_is_of_the_class_at_home(main, worker):
    main.run("class Odd(Exception):\n    def __init__(self, a, b):\n        self.a = a\ndef f():\n    raise Odd(1, 2)")
    with pytest.raises(main.Odd) as caught:
        worker.call(main.f)
    assert caught.value.a == 1


def test_an_exception_of_a_local_class_comes_back(main, worker):
    main.run("def f():\n    class Local(ValueError):\n        pass\n    raise Local('x')")
    with pytest.raises(ValueError, match="x") as caught:
        worker.call(main.f)
    assert type(caught.value).__name__ == "Local"


def test_a_payload_error_names_what_and_why():
    payload = pickle_failure(raised(ImportError("no module")))
    error = unpickle_payload_error(payload, "the call of f cannot be unpickled")
    assert type(error) is PayloadError
    assert str(error) == "the call of f cannot be unpickled: ImportError: no module"
    assert "ImportError: no module" in str(error.__cause__)


def test_an_error_in_words_is_told_as_any_other():
    full = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    error = unpickle_payload_error(Payload(failure_in_words(full)), "the call of f cannot be unpickled")
    assert str(error) == "the call of f cannot be unpickled: OSError: [Errno 28] No space left on device: '/tmp/x'"
    assert str(error.__cause__) == '\n"""\nOSError: [Errno 28] No space left on device: \'/tmp/x\'\n"""'


def test_a_remote_traceback_shows_its_text():
    assert str(remote_traceback("text")) == '\n"""\ntext"""'


def test_a_large_exception_comes_back():
    error = ValueError(bytes(1_000_000))
    payload = pickle_failure(raised(error))
    assert isinstance(payload, Payload)
    assert travel(error).args == error.args


class EndsWhilePickled(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class EndsWhileShown(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize("kind", [EndsWhilePickled, EndsWhileShown])
def test_an_exception_cannot_end_its_worker(kind):
    back = travel(kind("x"))
    assert isinstance(back, kind | RemoteError)
