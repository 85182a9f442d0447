"""One trial from outside: starts the subprocess, waits, reads what it came to, and ends everything that it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from benchmarks import child, processes
from benchmarks.peers import PEERS
from benchmarks.plan import Trial
from benchmarks.results import Failed, Measured, Result
from benchmarks.works import WORKS

ROOT = Path(__file__).resolve().parent.parent
#: What a pool may still need after its program has ended, before its processes count as left behind.
GRACE_S = 2.0
_OUTPUT_LINES = 20


class Limits(NamedTuple):
    """What is the same for every trial of a run."""

    workers: int
    timeout_s: float
    is_quick: bool


def size(trial: Trial, limits: Limits) -> int:
    """Return how many calls a trial does."""
    sizes = WORKS[trial.work].sizes
    return sizes.quick if limits.is_quick else sizes.for_pace(PEERS[trial.peer].pace)


def run(trial: Trial, limits: Limits) -> Result:
    """Run a trial to its end, which is a failure if it takes more than the time limit."""
    mark = uuid.uuid4().hex
    calls = size(trial, limits)
    began = time.perf_counter()
    # A worker that is being killed may still write there.
    with tempfile.TemporaryDirectory(prefix="hpcpool-bench-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        command = child.command(trial.peer, trial.work, workers=limits.workers, size=calls, mark=mark, scratch=scratch)
        grace_s = 0.0
        try:
            outcome = _outcome(command, mark, scratch, limits.timeout_s)
            wall_s = time.perf_counter() - began
            if isinstance(outcome, Measured):
                grace_s = GRACE_S
        finally:
            left_behind = processes.end_marked(mark, grace_s)
    return Result(trial, calls, outcome, wall_s, left_behind if isinstance(outcome, Measured) else 0)


def import_failure(peer: str) -> str | None:
    """Return why a peer cannot be imported in a fresh interpreter, or None; compiles its modules on the way."""
    command = [sys.executable, "-c", PEERS[peer].import_statement]
    done = subprocess.run(command, env=_environment("none"), capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else _last_line(done.stderr)


def _outcome(command: list[str], mark: str, scratch: Path, timeout_s: float) -> Measured | Failed:
    log = scratch / "output.txt"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=_environment(mark),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        exit_code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return _failed(f"not finished after {timeout_s:g} s", log)
    finally:
        process.kill()
        process.wait()
    if exit_code != 0:
        return _failed("", log) if exit_code == 1 else _failed(f"exit code {exit_code}", log)
    return Measured(json.loads(child.figures_file(scratch).read_text()))


def _failed(reason: str, log: Path) -> Failed:
    output = log.read_text(errors="replace")
    last_lines = "\n".join(output.splitlines()[-_OUTPUT_LINES:])
    return Failed(reason or _last_line(output), last_lines)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _environment(mark: str) -> dict[str, str]:
    """Workers import the calls by name, and Parsl starts its own scripts by name, virtual environment active or not.

    Modules are compiled once, as where they are installed, whatever this environment says.
    """
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPATH": _first_on_path(str(ROOT), "PYTHONPATH"),
        "PATH": _first_on_path(str(Path(sys.executable).parent), "PATH"),
        processes.MARK_VARIABLE: mark,
    }


def _first_on_path(folder: str, variable: str) -> str:
    rest = os.environ.get(variable)
    return os.pathsep.join([folder, rest]) if rest else folder
