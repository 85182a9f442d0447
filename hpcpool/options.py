"""The options of single calls, checked where the user gives them. No option is applied here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hpcpool.config.options import BYTES, bytes_of
from hpcpool.core.needs import NO_NEEDS
from hpcpool.processes.ticket import CallOptions
from hpcpool.quantities import integer, seconds

RetryOn = type[BaseException] | Iterable[type[BaseException]] | Callable[[BaseException], bool]


class _Unset:
    """The type of `UNSET`: an option that was not given, where None means something."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = _Unset()


def changed(
    options: CallOptions,
    *,
    retries: int | _Unset = UNSET,
    retry_on: RetryOn | _Unset = UNSET,
    timeout: float | _Unset | None = UNSET,
    priority: int | _Unset = UNSET,
    crash_limit: int | _Unset = UNSET,
    name: str | _Unset = UNSET,
    cores: int | _Unset | None = UNSET,
    gpus: int | _Unset | None = UNSET,
    memory: str | int | _Unset | None = UNSET,
    nodes: int | _Unset | None = UNSET,
    ranks: int | _Unset | None = UNSET,
    pool: str | _Unset | None = UNSET,
    time_request: float | _Unset | None = UNSET,
    keep: bool | _Unset = UNSET,
) -> CallOptions:
    """Return options with those given replaced; `TypeError` or `ValueError` for what is none."""
    changes: dict[str, Any] = {}
    if not isinstance(retries, _Unset):
        changes["retries"] = _whole("retries", retries, least=0)
    if not isinstance(retry_on, _Unset):
        changes["retry_on"] = _exceptions(retry_on)
    if not isinstance(timeout, _Unset):
        changes["timeout_s"] = seconds("timeout", timeout) or 0.0
    if not isinstance(priority, _Unset):
        changes["priority"] = _whole("priority", priority, least=-(2**31))
    if not isinstance(crash_limit, _Unset):
        changes["crash_limit"] = _whole("crash_limit", crash_limit, least=1)
    if not isinstance(name, _Unset):
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {name!r}")
        changes["name"] = name
    if not isinstance(keep, _Unset):
        if not isinstance(keep, bool):
            raise TypeError(f"keep must be True or False, not {keep!r}")
        changes["keep"] = keep
    needed = _needed(cores, gpus, memory, nodes, ranks, pool, time_request)
    if needed:
        needs = (options.needs or NO_NEEDS)._replace(**needed)
        changes["needs"] = None if needs == NO_NEEDS else needs
    return options._replace(**changes)


def _needed(cores: Any, gpus: Any, memory: Any, nodes: Any, ranks: Any, pool: Any, time_request: Any) -> dict[str, Any]:
    """Return the fields of `Needs` that were given; None sets one back."""
    needed: dict[str, Any] = {}
    for option, count in (("cores", cores), ("gpus", gpus), ("nodes", nodes), ("ranks", ranks)):
        if count is not UNSET:
            needed[option] = 0 if count is None else _whole(option, count, least=1)
    if memory is not UNSET:
        needed["memory_bytes"] = 0 if memory is None else _memory_bytes("memory", memory)
    if pool is not UNSET:
        if not isinstance(pool, str | None):
            raise TypeError(f"pool must be the name or label of a node pool or None, not {pool!r}")
        needed["pool"] = pool or ""
    if time_request is not UNSET:
        needed["time_s"] = seconds("time_request", time_request) or 0.0
    return needed


def _whole(option: str, value: Any, least: int) -> int:
    number = integer(None if isinstance(value, bool) else value, f"{option} must be a whole number, not {value!r}")
    if not least <= number < 2**31:
        raise ValueError(f"{option} must be at least {least} and less than 2**31, not {value!r}")
    return number


def _exceptions(value: Any) -> Any:
    if isinstance(value, type):
        value = (value,)
    elif callable(value):
        return value
    try:
        classes = tuple(value)
    except TypeError:
        classes = (None,)
    if not all(isinstance(item, type) and issubclass(item, BaseException) for item in classes):
        raise TypeError(f"retry_on must be an exception class, several of them, or a function, not {value!r}")
    return classes


def _memory_bytes(option: str, value: Any) -> int:
    """Return a number of bytes, given as such or as text with a unit; `TypeError` or `ValueError` for what is none."""
    try:
        return bytes_of(value)
    except TypeError:
        raise TypeError(f"{option} must be {BYTES.valid}, not {value!r}") from None
    except ValueError:
        raise ValueError(f"{option} must be {BYTES.valid}, not {value!r}") from None
