"""Ctrl-C: the first cancels what is pending and shuts down in order, the second kills."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.live.processes import PATIENCE_S, Pool
from tests.live.scripts import ROOT, script
from tests.live.test_client_death import until_nothing_is_left

pytestmark = pytest.mark.live

#: `wait_for` returns normally when its gate is there: a call that is left to finish says so. "told": what was
#: cancelled is so at the interchange, too.
WITH = """
import sys, threading, time
from pathlib import Path
from concurrent.futures import wait
from hpcpool import HPCPoolExecutor
from tests.live import calls
from tests.live.processes import until_heard

LEAST = 9
folder = Path(sys.argv[1])
try:
    with HPCPoolExecutor(1) as pool:
        running = pool.submit(calls.wait_for, folder / "gate", folder / "runs")
        pending = [pool.submit(calls.note, folder / "log", str(n)) for n in range(10)]

        def tell():
            wait(pending[-LEAST:])
            until_heard(pool)
            print("told", flush=True)

        threading.Thread(target=tell, daemon=True).start()
        while not ((folder / "runs").exists() and running.running()):
            time.sleep(0.005)
        print("busy", flush=True)
        pending[-1].result()
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("running", type(running.exception()).__name__, flush=True)
print("cancelled", sum(future.cancelled() for future in pending), flush=True)
"""


#: A view cancels all of them; the pool itself takes the oldest to be running, as ProcessPoolExecutor does.
IN_A_VIEW = WITH.replace("(1) as pool:", "(1) as whole, whole.options(priority=1) as pool:").replace("= 9", "= 10")
assert "as whole" in IN_A_VIEW
assert "LEAST = 10" in IN_A_VIEW


@pytest.mark.parametrize("text", [WITH, IN_A_VIEW], ids=["pool", "view"])
def test_the_first_ctrl_c_cancels_what_is_pending_and_lets_the_running_call_finish(text, tmp_path):
    with script(tmp_path / "with.py", text, tmp_path) as program:
        program.wait_for("busy")
        processes, directory = psutil.Process(program.pid).children(recursive=True), Pool.below(program.pid).directory
        program.interrupt()
        program.wait_for("told")
        (tmp_path / "gate").touch()
        assert program.finish() == 0, program.err
        assert "interrupted" in program.out
        assert "running NoneType" in program.out
        # The oldest pending call may have been on its way to the worker, as with ProcessPoolExecutor's call queue.
        cancelled = int(program.out.split("cancelled ")[1])
        assert cancelled >= 9
        log = tmp_path / "log"
        assert cancelled + (len(log.read_text().split()) if log.exists() else 0) == 10
        until_nothing_is_left(processes, directory)


@pytest.mark.parametrize(("text", "error"), [(WITH, "BrokenPool"), (IN_A_VIEW, "TaskKilled")], ids=["pool", "view"])
def test_the_second_ctrl_c_kills_what_still_runs(text, error, tmp_path):
    with script(tmp_path / "with.py", text, tmp_path) as program:
        program.wait_for("busy")
        processes, directory = psutil.Process(program.pid).children(recursive=True), Pool.below(program.pid).directory
        program.interrupt()
        program.wait_for("told")
        program.interrupt()  # and not again: it would strike while the program tells the rest
        program.finish()
        assert f"running {error}" in program.out
        until_nothing_is_left(processes, directory)


def interrupt_until_it_ends(program) -> None:
    """Ctrl-C as an impatient person does it: again, when it has not ended a moment after the last."""
    deadline = time.monotonic() + PATIENCE_S
    interrupts = 0
    while program.process.poll() is None:
        assert time.monotonic() < deadline
        program.interrupt()
        interrupts += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.wait(0.4)
    assert interrupts >= 2, "the first lets the running call finish"
    program.finish()


WITHOUT = """
import sys, time
from pathlib import Path
from hpcpool import HPCPoolExecutor
from tests.live import calls

folder = Path(sys.argv[1])
pool = HPCPoolExecutor(1)
running = pool.submit(calls.wait_for, folder / "gate", folder / "runs")
pending = [pool.submit(calls.note, folder / "log", str(n)) for n in range(10)]
over = []
for future in pending:
    future.add_done_callback(lambda future: over.append(future) or print("over", len(over), flush=True))
while not ((folder / "runs").exists() and running.running()):
    time.sleep(0.005)
print("busy", flush=True)
pending[-1].result()
"""


def test_ctrl_c_in_a_program_without_a_with_block(tmp_path):
    with script(tmp_path / "without.py", WITHOUT, tmp_path) as program:
        program.wait_for("busy")
        processes, directory = psutil.Process(program.pid).children(recursive=True), Pool.below(program.pid).directory
        program.interrupt()
        program.wait_for("over 9")
        (tmp_path / "gate").touch()
        assert program.finish() == -signal.SIGINT
        assert "KeyboardInterrupt" in program.err
        log = tmp_path / "log"
        assert not log.exists() or len(log.read_text().split()) <= 1
        until_nothing_is_left(processes, directory)


def test_a_second_ctrl_c_in_a_program_without_a_with_block_kills(tmp_path):
    with script(tmp_path / "without.py", WITHOUT, tmp_path) as program:
        program.wait_for("busy")
        processes, directory = psutil.Process(program.pid).children(recursive=True), Pool.below(program.pid).directory
        interrupt_until_it_ends(program)
        until_nothing_is_left(processes, directory)


#: Ctrl-C comes while the program waits for the pool: `busy` is said when it has begun to.
LEAVING = """
import sys, threading, time
from pathlib import Path
from hpcpool import HPCPoolExecutor
from hpcpool.processes import lifecycle
from tests.live import calls

folder = Path(sys.argv[1])

def last_long():
    calls.wait_for(folder / "gate", folder / "runs")
    (folder / "finished").touch()

def tell():
    while not (pool._is_shut_down or lifecycle.is_exiting()):
        time.sleep(0.001)
    print("busy", flush=True)

pool = HPCPoolExecutor(1)
running = pool.submit(last_long)
pending = [pool.submit(calls.note, folder / "log", str(n)) for n in range(10)]
over = []
for future in pending:
    future.add_done_callback(lambda future: over.append(future) or print("over", len(over), flush=True))
while not ((folder / "runs").exists() and running.running()):
    time.sleep(0.005)
threading.Thread(target=tell, daemon=True).start()
"""
LEAVING_A_BLOCK = f"""{LEAVING}
with pool:
    pass
"""
IN_SHUTDOWN = f"""{LEAVING}
pool.shutdown()
"""
waiting_programs = pytest.mark.parametrize(
    "text", [LEAVING, LEAVING_A_BLOCK, IN_SHUTDOWN], ids=["end of the program", "end of a block", "shutdown"]
)


@waiting_programs
def test_the_first_ctrl_c_while_the_program_waits_for_the_pool_lets_the_running_call_finish(text, tmp_path):
    with script(tmp_path / "leaving.py", text, tmp_path) as program:
        program.wait_for("busy")
        processes, directory = psutil.Process(program.pid).children(recursive=True), Pool.below(program.pid).directory
        program.interrupt()
        program.wait_for("over 9")
        (tmp_path / "gate").touch()
        program.finish()
        assert (tmp_path / "finished").exists()
        assert "KeyboardInterrupt" in program.err
        log = tmp_path / "log"
        assert not log.exists() or len(log.read_text().split()) <= 1
        until_nothing_is_left(processes, directory)


@waiting_programs
def test_the_second_ctrl_c_while_the_program_waits_for_the_pool_kills(text, tmp_path):
    with script(tmp_path / "leaving.py", text, tmp_path) as program:
        program.wait_for("busy")
        processes, directory = psutil.Process(program.pid).children(recursive=True), Pool.below(program.pid).directory
        interrupt_until_it_ends(program)
        assert not (tmp_path / "finished").exists()
        until_nothing_is_left(processes, directory)


def test_ctrl_c_in_a_terminal_reaches_the_program_only(tmp_path):
    """With a real terminal: the pool's processes are not in its foreground group, so no call is interrupted."""
    (tmp_path / "with.py").write_text(WITH)
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        os.execve(sys.executable, [sys.executable, str(tmp_path / "with.py"), str(tmp_path)], environment)
    try:
        read_until(terminal, b"busy")
        processes, directory = psutil.Process(pid).children(recursive=True), Pool.below(pid).directory
        os.write(terminal, b"\x03")
        read_until(terminal, b"told")
        (tmp_path / "gate").touch()
        out = read_until(terminal, b"cancelled")
        assert b"interrupted" in out
        assert b"running NoneType" in out
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
        until_nothing_is_left(processes, directory)
    finally:
        os.close(terminal)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_terminal_that_is_closed_ends_everything(tmp_path):
    (tmp_path / "with.py").write_text(WITH)
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        os.execve(sys.executable, [sys.executable, str(tmp_path / "with.py"), str(tmp_path)], environment)
    try:
        read_until(terminal, b"busy")
        processes, directory = psutil.Process(pid).children(recursive=True), Pool.below(pid).directory
    finally:
        os.close(terminal)  # SIGHUP to the program
        os.waitpid(pid, 0)
    until_nothing_is_left(processes, directory)


def read_until(terminal: int, word: bytes) -> bytes:
    read, deadline = b"", time.monotonic() + PATIENCE_S * 2
    while word not in read:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {word!r} in {read!r}"
        try:
            read += os.read(terminal, 4096)
        except OSError as error:  # EIO: nobody has the terminal open any more
            raise AssertionError(f"the program ended without {word!r}: {read!r}") from error
    return read


def test_an_interrupt_of_a_call_is_its_own_affair(tmp_path):
    text = """
import os, signal, time
from hpcpool import HPCPoolExecutor
with HPCPoolExecutor(1) as pool:
    def call():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    error = pool.submit(call).exception()
    assert type(error) is KeyboardInterrupt, error
    assert pool.submit(pow, 2, 3).result() == 8
"""
    with script(tmp_path / "call.py", text) as program:
        assert program.finish() == 0, program.err
        assert Path(tmp_path / "call.py").exists()
