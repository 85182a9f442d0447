"""What the tests have workers do; importable there, as a user's module is. Light: each new worker imports it."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: Far longer than any test: for calls that only a signal ends.
FOREVER_S = 600.0


def segfault() -> None:
    faulthandler._sigsegv()


def read_nowhere() -> None:
    ctypes.string_at(0)


def leave(code: int) -> None:
    os._exit(code)


def kill_myself(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)
    time.sleep(FOREVER_S)


def abort() -> None:
    os.abort()


def say_and_die(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    os._exit(3)


def die_with(data: Any) -> None:
    os._exit(len(data) % 256 or 1)


def run_forever(started: Path | None = None) -> None:
    """Until a signal comes. `started`: a file that says that it runs, with the worker's pid."""
    say_started(started)
    time.sleep(FOREVER_S)


def ignore_signals(started: Path) -> None:
    """Run forever, whatever a process can ignore."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    say_started(started)
    while True:
        time.sleep(FOREVER_S)


def say_started(path: Path | None) -> None:
    """Write a file with the worker's pid, whole as soon as it can be seen."""
    if path is not None:
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(str(os.getpid()))
        part.rename(path)


def wait_for(path: Path, started: Path | None = None) -> int:
    """Run until the file is there; return the worker's pid."""
    say_started(started)
    deadline = time.monotonic() + FOREVER_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return os.getpid()


def note(path: Path, text: str) -> str:
    """Append a line in one write, so that several workers can do it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)
    return text


def note_and_wait(path: Path, text: str, gate: Path) -> str:
    """Note that it runs, and run until the gate is there."""
    note(path, text)
    wait_for(gate)
    return text


def start_family(started: Path, *, detached: bool) -> None:
    """Run a shell with children forever; `detached`: one of them in a session of its own."""
    shell = "sleep 600 & sleep 600 & wait"
    if detached:
        shell = f"setsid sleep 600 & {shell}"
    with subprocess.Popen(["bash", "-c", f"echo $$ > {started}; {shell}"]) as process:
        process.wait()
