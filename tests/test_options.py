"""The options of calls: what is taken, what is refused and with what words, and how one set builds on another."""

from __future__ import annotations

import fractions
import math
from typing import Any

import pytest

from hpcpool.core.needs import Needs
from hpcpool.options import UNSET, changed
from hpcpool.processes.ticket import CallOptions

DEFAULTS = CallOptions()


def predicate(error: BaseException) -> bool:
    return True


class Callable:
    def __call__(self, error: BaseException) -> bool:
        return True


def test_nothing_given_changes_nothing():
    assert changed(DEFAULTS) == DEFAULTS
    assert changed(DEFAULTS, retries=UNSET, timeout=UNSET, name=UNSET) == DEFAULTS


def test_the_defaults_are_one_run_without_a_limit():
    assert CallOptions(retries=0, retry_on=(Exception,), timeout_s=0.0, priority=0, crash_limit=0, name="") == DEFAULTS


def test_options_build_on_others_and_leave_them_as_they_are():
    first = changed(DEFAULTS, retries=2, timeout=10, name="first")
    second = changed(first, timeout=None, priority=3)
    assert first == CallOptions(retries=2, timeout_s=10.0, name="first")
    assert second == CallOptions(retries=2, timeout_s=0.0, priority=3, name="first")
    assert CallOptions() == DEFAULTS


def test_an_option_can_be_set_back():
    options = changed(DEFAULTS, retries=2, retry_on=KeyError, timeout=5, priority=1, name="x")
    assert changed(options, retries=0, retry_on=Exception, timeout=None, priority=0, name="") == DEFAULTS


@pytest.mark.parametrize("value", [0, 1, 1000, 2**31 - 1])
def test_retries_are_whole_numbers(value: int):
    assert changed(DEFAULTS, retries=value).retries == value


@pytest.mark.parametrize("value", [-5, 0, 7, -(2**31)])
def test_priorities_may_be_negative(value: int):
    assert changed(DEFAULTS, priority=value).priority == value


@pytest.mark.parametrize("option", ["retries", "priority", "crash_limit"])
@pytest.mark.parametrize("value", [None, "3", 2.0, True, [1], 1 + 0j], ids=repr)
def test_what_is_no_whole_number_is_a_type_error(option: str, value: Any):
    with pytest.raises(TypeError, match=f"^{option} must be a whole number, not "):
        changed(DEFAULTS, **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("retries", -1), ("retries", 2**31), ("priority", 2**31), ("priority", -(2**31) - 1), ("crash_limit", 0)],
)
def test_a_number_out_of_range_is_a_value_error(option: str, value: int):
    with pytest.raises(ValueError, match=f"^{option} must be at least .* and less than .*, not {value}$"):
        changed(DEFAULTS, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1, 0.001, 3600.0, fractions.Fraction(1, 4)], ids=repr)
def test_a_timeout_is_seconds(value: Any):
    timeout = changed(DEFAULTS, timeout=value).timeout_s
    assert timeout == float(value)
    assert type(timeout) is float


@pytest.mark.parametrize("value", ["5", True, [1], 1j], ids=repr)
def test_a_timeout_that_is_no_number_is_a_type_error(value: Any):
    with pytest.raises(TypeError, match="^timeout must be seconds"):
        changed(DEFAULTS, timeout=value)


@pytest.mark.parametrize("value", [0, -1, -0.5, math.inf, math.nan, 10**400])
def test_a_timeout_that_no_call_could_keep_is_a_value_error(value: float):
    with pytest.raises(ValueError, match="^timeout must be more than 0 seconds and finite"):
        changed(DEFAULTS, timeout=value)


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    options = changed(DEFAULTS, retries=numpy.int64(2), priority=numpy.int8(-3), timeout=numpy.float32(0.5))
    assert options == CallOptions(retries=2, priority=-3, timeout_s=0.5)
    assert [type(value) for value in (options.retries, options.priority, options.timeout_s)] == [int, int, float]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (KeyError, (KeyError,)),
        (BaseException, (BaseException,)),
        ((KeyError, OSError), (KeyError, OSError)),
        ([KeyError], (KeyError,)),
        (iter([KeyError, OSError]), (KeyError, OSError)),
        ((), ()),
    ],
    ids=str,
)
def test_retry_on_takes_one_class_or_several(value: Any, expected: tuple[type, ...]):
    assert changed(DEFAULTS, retry_on=value).retry_on == expected


@pytest.mark.parametrize("value", [predicate, Callable(), predicate.__get__(ValueError())], ids=str)
def test_retry_on_takes_a_function(value: Any):
    assert changed(DEFAULTS, retry_on=value).retry_on is value


@pytest.mark.parametrize("value", [None, 5, int, "KeyError", [KeyError, int], [KeyError()], KeyError()], ids=repr)
def test_anything_else_to_retry_on_is_a_type_error(value: Any):
    with pytest.raises(TypeError, match="^retry_on must be an exception class, several of them, or a function, not "):
        changed(DEFAULTS, retry_on=value)


@pytest.mark.parametrize("value", [None, 5, b"name", ["name"]], ids=repr)
def test_a_name_is_a_string(value: Any):
    assert changed(DEFAULTS, name="größer").name == "größer"
    with pytest.raises(TypeError, match="^name must be a string, not "):
        changed(DEFAULTS, name=value)


def test_results_are_kept_where_they_were_made_or_not():
    assert changed(DEFAULTS, keep=True) == CallOptions(keep=True)
    assert changed(changed(DEFAULTS, keep=True), keep=False, retries=1) == CallOptions(retries=1)


@pytest.mark.parametrize("value", [None, 1, "yes"], ids=repr)
def test_whether_results_are_kept_is_true_or_false(value: Any):
    with pytest.raises(TypeError, match="^keep must be True or False, not "):
        changed(DEFAULTS, keep=value)


# -- what calls need


def test_what_a_call_needs_is_gathered():
    options = changed(DEFAULTS, cores=8, gpus=1, memory="16GB", nodes=2, ranks=64, pool="big", time_request=3600)
    assert options.needs == Needs(8, 1, 16 * 10**9, 2, 64, "big", 3600.0)
    assert changed(options, cores=4).needs == Needs(4, 1, 16 * 10**9, 2, 64, "big", 3600.0)


def test_a_need_can_be_set_back():
    options = changed(DEFAULTS, cores=8, memory=1000, pool="big", time_request=5)
    assert changed(options, memory=None, pool=None, time_request=None).needs == Needs(cores=8)
    assert changed(options, cores=None, memory=None, pool=None, time_request=None) == DEFAULTS


@pytest.mark.parametrize("option", ["cores", "gpus", "nodes", "ranks"])
def test_what_is_no_count_is_an_error(option: str):
    for value in ("3", 2.0, True, [1]):
        with pytest.raises(TypeError, match=f"^{option} must be a whole number"):
            changed(DEFAULTS, **{option: value})  # type: ignore[arg-type]
    for value in (0, -1, 2**31):
        with pytest.raises(ValueError, match=f"^{option} must be at least 1"):
            changed(DEFAULTS, **{option: value})  # type: ignore[arg-type]


def test_what_is_no_memory_is_an_error():
    for value in (1.5, [1], True, b"4GB"):
        with pytest.raises(TypeError, match="^memory must be bytes as a number, or text such as '4GB'"):
            changed(DEFAULTS, memory=value)  # type: ignore[arg-type]
    for value in ("4", "4G", "-4GB", 0):
        with pytest.raises(ValueError, match="^memory must be bytes as a number, or text such as '4GB'"):
            changed(DEFAULTS, memory=value)


def test_what_is_no_pool_or_time_is_an_error():
    with pytest.raises(TypeError, match="^pool must be the name or label of a node pool or None"):
        changed(DEFAULTS, pool=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^time_request must be seconds"):
        changed(DEFAULTS, time_request="1h")  # type: ignore[arg-type]


def test_a_wrong_option_says_which_one():
    with pytest.raises(TypeError, match="retry"):
        changed(DEFAULTS, retry=1)  # type: ignore[call-arg]
