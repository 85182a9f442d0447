"""What calls write to stdout and stderr reaches the user's, also when the user stops reading."""

from __future__ import annotations

import pytest

from tests.live.processes import until
from tests.live.scripts import script

pytestmark = pytest.mark.live

PRINTS = """
import os, sys, subprocess
from hpcpool import HPCPoolExecutor

def call(n):
    print(f"printed {n}")
    print(f"complained {n}", file=sys.stderr)
    subprocess.run(["bash", "-c", f"echo child {n}; echo child complained {n} >&2"])
    os.write(2, b"raw %d\\n" % n)

with HPCPoolExecutor(2) as pool:
    list(pool.map(call, range(5)))
"""


def test_what_calls_print_is_all_there_when_the_program_has_ended(tmp_path):
    with script(tmp_path / "prints.py", PRINTS) as program:
        assert program.finish() == 0
        # Not by lines: two workers may write at once, and Python can write a line in two pieces.
        for n in range(5):
            assert [program.out.count(f"{what} {n}") for what in ("printed", "child")] == [1, 1]
            assert [program.err.count(f"{what} {n}") for what in ("child complained", "raw")] == [1, 1]
            assert program.err.count(f"complained {n}") == 2


def test_a_crash_shows_on_the_users_stderr(tmp_path):
    text = """
import faulthandler
from hpcpool import HPCPoolExecutor
with HPCPoolExecutor(1) as pool:
    error = pool.submit(faulthandler._sigsegv).exception()
    assert "Segmentation fault" in error.stderr_tail, error.stderr_tail
"""
    with script(tmp_path / "crash.py", text) as program:
        assert program.finish() == 0
        assert "Segmentation fault" in program.err


def test_a_failed_initializer_shows_its_traceback(tmp_path):
    text = """
from hpcpool import HPCPoolExecutor, BrokenPool
def set_up():
    raise ValueError("no such licence")
with HPCPoolExecutor(1, initializer=set_up) as pool:
    error = pool.submit(abs, 1).exception()
assert isinstance(error, BrokenPool), error
assert "no such licence" in str(error), error
assert "in set_up" in str(error.__cause__), error.__cause__
"""
    with script(tmp_path / "initializer.py", text) as program:
        assert program.finish() == 0, program.err
        assert "Exception in initializer" in program.err
        assert "ValueError: no such licence" in program.err


FLOODS = """
import os, sys, time
from hpcpool import HPCPoolExecutor

def flood():
    for n in range(100):
        os.write(2, b"x" * 65535 + b"\\n")

def use(pid):
    return sum(map(float, open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[11:13]))

with HPCPoolExecutor(2) as pool:
    manager = pool.submit(lambda: int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])).result()
    flooding = pool.submit(flood)
    # stderr is not read, the others go on all the same, and nobody turns in circles until it is.
    print([pool.submit(pow, 2, n).result() for n in range(10)], flush=True)
    while not flooding.running():
        time.sleep(0.005)
    print("manager", manager, flush=True)
    flooding.result()
"""


def test_a_stderr_that_nobody_reads_stops_only_who_writes_to_it(tmp_path):
    with script(tmp_path / "floods.py", FLOODS) as program:
        del program._pipes["err"]
        program.wait_for("manager")
        assert str([2**n for n in range(10)]) in program.out
        manager = int(program.out.split()[-1])
        until(lambda: switched(manager, seconds=0.2) == 0, "it reads no more")
        before = switches(manager)
        assert not_finished_for(program, seconds=0.5)
        assert switches(manager) - before < 20
        program._pipes["err"] = program.process.stderr.fileno()
        assert program.finish() == 0
        assert program.err.count("x") == 100 * 65535


def switches(pid: int) -> int:
    """How often a process has gone to sleep, or was made to."""
    import psutil

    return sum(psutil.Process(pid).num_ctx_switches())


def switched(pid: int, seconds: float) -> int:
    import time

    before = switches(pid)
    time.sleep(seconds)
    return switches(pid) - before


def not_finished_for(program, seconds: float) -> bool:
    import subprocess

    try:
        program.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False
