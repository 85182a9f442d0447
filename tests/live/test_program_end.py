"""The end of a user's program: pending calls are finished first, a dropped executor finishes and leaves."""

from __future__ import annotations

import psutil
import pytest

from tests.live.processes import Pool
from tests.live.scripts import script
from tests.live.test_client_death import until_nothing_is_left

pytestmark = pytest.mark.live


def test_pending_calls_are_finished_before_the_program_ends(tmp_path):
    text = """
import sys
from pathlib import Path
from hpcpool import HPCPoolExecutor
from tests.live import calls
folder = Path(sys.argv[1])
pool = HPCPoolExecutor(2)
first = pool.submit(calls.wait_for, folder / "gate")
for n in range(100):
    pool.submit(calls.note, folder / "log", str(n))
last = pool.submit(lambda pid: calls.note(folder / "log", "after the gate"), first)
print("end", flush=True)
"""
    with script(tmp_path / "pending.py", text, tmp_path) as program:
        program.wait_for("end")
        processes, directory = psutil.Process(program.pid).children(recursive=True), Pool.below(program.pid).directory
        (tmp_path / "gate").touch()
        assert program.finish() == 0, program.err
        assert program.err == ""
        written = (tmp_path / "log").read_text().splitlines()
        assert sorted(written) == sorted([*map(str, range(100)), "after the gate"])
        until_nothing_is_left(processes, directory)


@pytest.mark.parametrize(
    ("ending", "code"), [("raise SystemExit(5)", 5), ("raise ValueError('my bug')", 1), ("sys.exit(0)", 0)]
)
def test_the_exit_code_of_a_program_is_its_own(ending, code, tmp_path):
    text = f"""
import sys
from pathlib import Path
from hpcpool import HPCPoolExecutor
from tests.live import calls
pool = HPCPoolExecutor(1)
for n in range(20):
    pool.submit(calls.note, Path(sys.argv[1]) / "log", str(n))
{ending}
"""
    with script(tmp_path / "ends.py", text, tmp_path) as program:
        assert program.finish() == code, program.err
        assert len((tmp_path / "log").read_text().splitlines()) == 20
        assert ("my bug" in program.err) == (code == 1)


def test_a_dropped_executor_finishes_and_leaves_while_the_program_goes_on(tmp_path):
    text = """
import gc, os, sys, time
import psutil
from pathlib import Path
from hpcpool import HPCPoolExecutor
from tests.live import calls
from tests.live.processes import until
folder = Path(sys.argv[1])
future = HPCPoolExecutor(1).submit(calls.wait_for, folder / "gate", folder / "runs")
gc.collect()
(folder / "gate").touch()
future.result(20)
psutil.wait_procs(psutil.Process().children(recursive=True), 20)
assert not psutil.Process().children(), psutil.Process().children()
until(lambda: not list(Path(os.environ["TMPDIR"]).glob("hpcpool-*")), "the client's thread has removed it")
print("all gone", flush=True)
"""
    with script(tmp_path / "dropped.py", text, tmp_path) as program:
        assert program.finish() == 0, program.err
        assert "all gone" in program.out


def test_exit_handlers_of_workers_run_and_are_waited_for(tmp_path):
    text = """
import atexit, sys, time
from pathlib import Path
from hpcpool import HPCPoolExecutor
from tests.live import calls
def leave(path):
    time.sleep(0.3)
    calls.note(path, "left")
def call(path):
    atexit.register(leave, path)
with HPCPoolExecutor(1) as pool:
    pool.submit(call, Path(sys.argv[1]) / "log").result()
"""
    with script(tmp_path / "handlers.py", text, tmp_path) as program:
        assert program.finish() == 0, program.err
        assert (tmp_path / "log").read_text() == "left\n"


def test_a_program_that_submits_while_it_ends_is_told_so(tmp_path):
    text = """
import threading, time
from hpcpool import HPCPoolExecutor
pool = HPCPoolExecutor(1)
pool.submit(abs, 1).result()
def late():
    threading.main_thread().join()
    try:
        while True:
            pool.submit(abs, 1).result(20)
    except RuntimeError as error:
        print("told:", error, flush=True)
threading.Thread(target=late).start()
"""
    with script(tmp_path / "late.py", text) as program:
        assert program.finish() == 0, program.err
        assert "told: cannot schedule new futures after" in program.out
