"""MPI steps as a call runs them: starts the ranks, gives them the function, and waits for what came of it.

The call goes to the first rank by stdin, which stays open: when it ends, the ranks end (see `rank`). What came of it
comes back as one line of stdout, so no shared file system is needed.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from hpcpool.errors import MPIError
from hpcpool.mpi import answer
from hpcpool.mpi.prefix import PREFIX_VARIABLE, Step, launch_prefix, outside_of_steps, program_of, step_of
from hpcpool.processes.start_command import start_command

P = ParamSpec("P")
R = TypeVar("R")

_VERSION_TIMEOUT_S = 30.0


def run(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `fn(*args, **kwargs)` on all ranks of this call and return what the first rank returned.

    Each rank is a new process with mpi4py, in which `MPI.COMM_WORLD` has all of them. What they print goes to stderr.

    Raises:
        Exception: what `fn` raised on a rank; the other ranks are then ended.
        MPIError: the ranks could not be started, or ended in another way.
        RuntimeError: the call has no nodes of its own.
    """
    result: R = _run(answer.OF_FIRST, fn, args, kwargs)[0]
    return result


def run_on_all(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> list[R]:
    """Run as `run` does, and return what each rank returned, in the order of the ranks."""
    return _run(answer.OF_ALL, fn, args, kwargs)


def prefix() -> tuple[str, ...]:
    """Return the words that stand in front of an MPI program which this call starts on its nodes.

    Raises:
        MPIError: there is no program to start ranks with.
        RuntimeError: the call has no nodes of its own.
    """
    return _prefix(_own_step())


def bash_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a bash call: with the prefix, if the call has nodes of its own and there is an MPI."""
    step = step_of(environment)
    if step is None:
        return dict(environment)
    outside = outside_of_steps(environment)
    try:
        # Not quoted: bash makes words of `$HPCPOOL_MPI_PREFIX` at its blanks, and leaves quotes in them alone.
        return outside | {PREFIX_VARIABLE: " ".join(_prefix(step))}
    except MPIError:
        return outside  # what it starts need not be an MPI program; if it is, bash finds the variable unset


def _own_step() -> Step:
    step = step_of(os.environ)
    if step is None:
        raise RuntimeError("this call has no nodes of its own; submit it with ex.options(nodes=..., ranks=...)")
    return step


def _prefix(step: Step) -> tuple[str, ...]:
    try:
        program, *options = program_of(
            os.environ, _mpiexec_says(os.environ.get("PATH")), shutil.which("srun") is not None
        )
        return launch_prefix(step.hosts, step.ranks, program, options)
    except ValueError as error:
        raise MPIError(f"no ranks can be started: {error}") from error


@functools.lru_cache(maxsize=4)
def _mpiexec_says(path: str | None) -> str | None:
    """What `mpiexec --version` prints; None where this PATH has none."""
    program = shutil.which("mpiexec", path=path)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MPIError(f"{program} --version cannot be run: {error}") from error
    return done.stdout.decode(errors="replace")


def _run(mode: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    step = _own_step()
    mark = uuid.uuid4().hex
    command = [*_prefix(step), *start_command("rank", mark, step.ranks, mode)]
    call = answer.pickled_call(fn, args, kwargs, sys.path, os.getcwd())
    environment = outside_of_steps(os.environ)
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    except OSError as error:
        raise MPIError(f"cannot start {command[0]}: {error}") from error
    with process:
        try:
            found = _exchange(process, call, mark)
        except BaseException:
            process.kill()
            raise
    if found is None:
        raise MPIError(_ended(command, step, process.returncode), returncode=process.returncode)
    return answer.opened(found)


def _exchange(process: subprocess.Popen[bytes], call: bytes, mark: str) -> bytes | None:
    """Hand the call over and return the ranks' answer; None: they ended without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    _hand_over(process.stdin.fileno(), call)
    found = None
    for line in process.stdout:
        said = answer.read_line(line, mark)
        if said is not None:
            found = found or said
        else:  # a library that writes to the descriptor before Python does
            sys.stderr.buffer.write(line)
    process.wait()  # before stdin is closed: for the ranks that means that this process has died
    return found


def _hand_over(descriptor: int, call: bytes) -> None:
    # Past the buffer of `stdin`: what stays in it when the ranks have died would be an error of its closing.
    rest = memoryview(call)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BrokenPipeError:
        pass  # they have ended, and stdout may say why


def _ended(command: list[str], step: Step, code: int) -> str:
    how = f"ended with code {code}" if code >= 0 else f"was killed by signal {-code}"
    hosts = ", ".join(step.hosts)
    return (
        f"{step.ranks} MPI ranks on {hosts} gave no answer: {command[0]} {how}; what they said is on the call's stderr"
    )
