"""When the client dies, however it dies, nothing of its pools remains: no process, no directory."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from hpcpool.processes.start_command import start_command
from tests.live.processes import PATIENCE_S, Pool, is_alive, kill, pools_below, role, stopped, until
from tests.live.scripts import Script, script, with_own_manager

pytestmark = pytest.mark.live

#: What may pass from the client's death to the last trace of the pool, on a machine with much else to do.
#: The budget is 2 s; what is usual is 0.2 s.
GONE_S = PATIENCE_S

BUSY = """
import os, sys, time
from pathlib import Path
from hpcpool import HPCPoolExecutor
from tests.live import calls

folder = Path(sys.argv[1])
pool = HPCPoolExecutor(5)
started = [folder / name for name in ("plain", "family", "bash", "other", "ignores")]
pool.submit(calls.run_forever, started[0])
pool.submit(calls.start_family, started[1], detached=True)
pool.bash("echo $$ > {started}; setsid sleep 600 & sleep 600 & (sleep 600; true) & wait", started=started[2])
pool.bash(["bash", "-c", f"trap '' TERM HUP INT; echo $$ > {started[3]}; while true; do sleep 0.01; done"])
pool.submit(calls.ignore_signals, started[4])
pending = [pool.submit(pow, 2, n) for n in range(1000)]
while not all(path.exists() and path.read_text() for path in started):
    time.sleep(0.005)
print("busy", flush=True)
"""
APART = with_own_manager(BUSY)
FOREVER = "time.sleep(600)\n"


def trace_of(program: Script) -> tuple[list[psutil.Process], Path]:
    """All processes below the program, and its pool's directory."""
    below = psutil.Process(program.pid).children(recursive=True)
    return below, Pool.below(program.pid).directory


def until_nothing_is_left(processes: list[psutil.Process], directory: Path) -> float:
    """Wait until the processes and the directory are gone; return how long it took."""
    began = time.monotonic()
    until(lambda: not (directory.exists() or left(processes) or shared_by(directory)), "nothing is left", GONE_S)
    return time.monotonic() - began


def shared_by(directory: Path) -> list[Path]:
    """What the pool of a run directory has in shared memory."""
    return list(Path("/dev/shm").glob(f"{directory.name}-*"))


def left(processes: list[psutil.Process]) -> list[int]:
    return [process.pid for process in processes if process.is_running() and is_alive(process.pid)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGHUP])
def test_a_killed_client_leaves_nothing(number, tmp_path):
    with script(tmp_path / "busy.py", BUSY + FOREVER, tmp_path) as program:
        program.wait_for("busy")
        until(lambda: len(trace_of(program)[0]) >= 2 + 5 + 7, "all that the calls start has started")
        processes, directory = trace_of(program)
        os.kill(program.pid, number)
        program.process.wait()
        until_nothing_is_left(processes, directory)
        program.finish()  # so nobody holds its stdout or stderr either


@pytest.mark.parametrize("ending", ["os._exit(3)", "os.abort()", "import ctypes; ctypes.string_at(0)"])
def test_a_client_that_ends_itself_leaves_nothing(ending, tmp_path):
    with script(tmp_path / "busy.py", BUSY + f"sys.stdin.read()\ninput_ = None\n{ending}\n", tmp_path) as program:
        program.wait_for("busy")
        program.finish()
    until(lambda: not list(Path(os.environ["TMPDIR"]).glob("hpcpool-*")), "no directory is left", GONE_S)


@pytest.mark.parametrize(
    ("victim", "busy"),
    [("interchange", BUSY), ("fork-server", BUSY), ("interchange", APART), ("manager", APART), ("fork-server", APART)],
)
def test_a_client_that_is_killed_together_with_another_leaves_nothing(victim, busy, tmp_path):
    with script(tmp_path / "busy.py", busy + FOREVER, tmp_path) as program:
        program.wait_for("busy")
        processes, directory = trace_of(program)
        (other,) = [process for process in processes if role(process) == victim]
        program.process.kill()
        kill(other)
        program.process.wait()
        until_nothing_is_left(processes, directory)


def test_a_client_that_is_killed_with_its_whole_process_group_leaves_nothing(tmp_path):
    with script(tmp_path / "busy.py", BUSY + FOREVER, tmp_path) as program:
        program.wait_for("busy")
        processes, directory = trace_of(program)
        os.killpg(program.pid, signal.SIGKILL)
        program.process.wait()
        until_nothing_is_left(processes, directory)


def test_a_client_that_dies_while_its_manager_hangs_leaves_nothing(tmp_path):
    with script(tmp_path / "busy.py", APART + FOREVER, tmp_path) as program:
        program.wait_for("busy")
        processes, directory = trace_of(program)
        (manager,) = [process for process in processes if role(process) == "manager"]
        with stopped(manager):
            program.process.kill()
            program.process.wait()
            until_nothing_is_left(processes, directory)


STARTS = """
import sys, time
from hpcpool import HPCPoolExecutor
pool = HPCPoolExecutor(2)
print("starts", flush=True)
future = pool.submit(time.sleep, 600)
time.sleep(600)
"""


@pytest.mark.parametrize("seed", range(6))
def test_a_client_that_is_killed_while_its_pool_starts_leaves_nothing(seed, tmp_path):
    dice = random.Random(seed)
    with script(tmp_path / "starts.py", STARTS) as program:
        program.wait_for("starts")
        wanted = dice.randint(1, 3)
        me = psutil.Process(program.pid)
        until(lambda: pools_below(program.pid) and len(me.children(recursive=True)) >= wanted)
        program.process.kill()
        program.process.wait()
        program.finish()
        until(lambda: not list(Path(os.environ["TMPDIR"]).glob("hpcpool-*")), "no directory is left", GONE_S)


def test_an_interchange_leaves_nothing_where_another_pool_has_removed_what_its_dead_client_had_made(tmp_path):
    """That happens between the client's death and the moment when the interchange is up."""
    directory = tmp_path / "hpcpool-emptied"
    directory.mkdir()
    (client, end), (watched, census) = socket.socketpair(), os.pipe()
    client.close()
    os.close(watched)
    inherited = (end.fileno(), os.dup(2), census)
    command = start_command("interchange", str(directory), *inherited)
    done = subprocess.run(command, pass_fds=inherited, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    for descriptor in (inherited[1], census):
        os.close(descriptor)
    end.close()
    assert "the client is gone" in done.stderr
    assert not directory.exists()


INNER = """
import os, sys, time
from pathlib import Path
from hpcpool import HPCPoolExecutor
from tests.live import calls

def outer(started):
    with HPCPoolExecutor(1) as inner:
        inner.bash("echo $$ > {started}; setsid sleep 600 & sleep 600", started=started).result()

pool = HPCPoolExecutor(1)
started = Path(sys.argv[1]) / "started"
future = pool.submit(outer, started)
while not (started.exists() and started.read_text()):
    time.sleep(0.005)
print("busy", flush=True)
time.sleep(600)
"""


def test_a_killed_client_leaves_nothing_of_a_pool_inside_a_call(tmp_path):
    with script(tmp_path / "inner.py", INNER, tmp_path) as program:
        program.wait_for("busy")
        processes, directory = trace_of(program)
        assert sum(role(process) == "interchange" for process in processes) == 2
        program.process.kill()
        program.process.wait()
        until_nothing_is_left(processes, directory)
        assert not list(Path(os.environ["TMPDIR"]).glob("hpcpool-*"))
