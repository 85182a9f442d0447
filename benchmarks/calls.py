"""The functions that run in workers, and nothing else: a worker that imports them by name pays for no other module."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

#: A sleep of some milliseconds wakes up about 0.06 ms late on Linux; the last part of a pause is spun instead.
_SPIN_S = 0.0001

#: One float64 in each page of 4 KiB.
FLOATS_PER_PAGE = 512


def no_op() -> None:
    """Do nothing, so that what remains is the cost of the call."""


def echo(value: Any) -> Any:
    """Give back what came."""
    return value


def echo_array(array: Any) -> Any:
    """Give back a NumPy array after reading from every page of it: data that never came cannot be read."""
    if not array[::FLOATS_PER_PAGE].all():
        raise ValueError("the array holds a zero that was not sent")
    return array


def item_of(array: Any, index: int) -> float:
    """Read one number of a NumPy array."""
    return float(array[index])


def increment(number: int) -> int:
    """One link of a chain."""
    return number + 1


def add(first: int, second: int) -> int:
    """A node of a tree."""
    return first + second


def pause(duration_s: float) -> None:
    """Take `duration_s`, to some microseconds, and almost no CPU: a call whose ideal duration is known exactly."""
    end = time.perf_counter() + duration_s
    time.sleep(max(0.0, duration_s - _SPIN_S))
    while time.perf_counter() < end:
        pass


def pauses(count: int, duration_s: float) -> None:
    """Take so many pauses, one after the other, with nothing around them."""
    for _ in range(count):
        pause(duration_s)


def run_bash(command: str) -> int:
    """Run a bash command and capture its output, as somebody does whose pool knows nothing of commands."""
    return subprocess.run(["bash", "-c", command], check=True, capture_output=True).returncode


def spawn_bash(count: int) -> None:
    """Run `bash -c true` so many times, one after the other, with as little around it as can be."""
    for _ in range(count):
        os.waitpid(os.posix_spawnp("bash", ["bash", "-c", "true"], os.environ), 0)
