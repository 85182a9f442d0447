"""Calls with large arguments and results."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from hpcpool import HPCPoolExecutor
from tests.live.calls import note, wait_for

LARGE = 1024 * 1024

_aside: list[Any] = []


def echo(value: Any) -> Any:
    return value


def double(array: np.ndarray) -> np.ndarray:
    """Change an argument in place, as some programs do."""
    array *= 2
    return array


def total(*arrays: np.ndarray) -> float:
    return float(sum(array.sum() for array in arrays))


def ones(count: int = LARGE) -> np.ndarray:
    return np.ones(count // 8)


def put_aside(array: np.ndarray) -> None:
    """A worker that remembers what it was given."""
    _aside.append(array)


def total_aside() -> float:
    return total(*_aside)


def ones_when(gate: Path, started: Path) -> np.ndarray:
    wait_for(gate, started)
    return ones()


def wait_with(array: np.ndarray, gate: Path, started: Path) -> float:
    wait_for(gate, started)
    return total(array)


def fail_first(array: np.ndarray, log: Path) -> float:
    note(log, "x")
    if log.read_text() == "x\n":
        raise ValueError("the first time")
    return total(array)


class DiesWhenPickled:
    """A result of which a part is in shared memory when its worker dies."""

    def __reduce__(self) -> Any:
        return list, (DiesThen(np.ones(LARGE // 8)),)


class DiesThen:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce_ex__(self, protocol: int) -> Any:
        return tuple, ([self.array, KillsItself()],)


class KillsItself:
    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def inner_pool(started: Path) -> None:
    """A pool inside a call, with large data in flight."""
    with HPCPoolExecutor(1) as pool:
        pool.submit(wait_with, ones(), started.with_name("never"), started).result()


def fork_and_look(array: np.ndarray, gate: Path, report: Path) -> int:
    """Leave a child behind that looks at the argument after the call has ended."""
    pid = os.fork()
    if pid == 0:
        wait_for(gate)
        report.with_suffix(".new").write_text(str(total(array)))
        report.with_suffix(".new").rename(report)
        os._exit(0)
    return pid


def use(array: np.ndarray, number: float, how: str) -> Any:
    """Check that an array is full of a number, and do with it what programs do."""
    if not (array == number).all():
        raise ValueError(f"not all of the array is {number}: {array}")
    if how == "change":
        array += 1
    elif how == "keep":
        _aside[:] = [array]
    elif how == "fork":
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    elif how == "half":
        return array[: len(array) // 2]
    return array


def fork_and_return(count: int = LARGE) -> np.ndarray:
    """A call whose child runs out of it, too."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return np.full(count // 8, 1.0 if pid == 0 else 2.0)
