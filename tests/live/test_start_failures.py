"""A pool that cannot start is broken with the reason, in the words of what failed. It does not hang."""

from __future__ import annotations

import os
import sys

import pytest

from hpcpool import HPCPoolExecutor
from hpcpool.errors import BrokenPool
from tests.gate import Gate, pass_gate
from tests.live.processes import PATIENCE_S, executor
from tests.live.scripts import script, with_own_manager

pytestmark = pytest.mark.live


def set_up_badly(text: str) -> None:
    raise ValueError(text)


def set_up_badly_behind(gate: str, text: str) -> None:
    pass_gate(gate)
    set_up_badly(text)


def leave_at_once(code: int) -> None:
    os.write(2, b"no such device\n")
    os._exit(code)


def take_two(one: int, two: int) -> None:
    pass


def test_a_failing_initializer_breaks_the_pool_with_its_traceback(tmp_path):
    gate = Gate(tmp_path)
    with HPCPoolExecutor(2, initializer=set_up_badly_behind, initargs=(gate.path, "no such licence")) as pool, gate:
        futures = [pool.submit(abs, n) for n in range(10)]
        gate.open()
        errors = [future.exception(PATIENCE_S) for future in futures]
        assert {type(error) for error in errors} == {BrokenPool}
        assert "ValueError: no such licence" in str(errors[0])
        assert "in set_up_badly" in str(errors[0].__cause__)
        with pytest.raises(BrokenPool, match="no such licence"):
            pool.submit(abs, 1)


def test_wrong_initargs_break_the_pool():
    with HPCPoolExecutor(1, initializer=take_two, initargs=(1,)) as pool:
        error = pool.submit(abs, 1).exception(PATIENCE_S)
        assert isinstance(error, BrokenPool)
        assert "TypeError" in str(error)
        assert "take_two" in str(error)


def test_an_initializer_that_kills_its_worker_breaks_the_pool_with_what_it_wrote():
    with HPCPoolExecutor(1, initializer=leave_at_once, initargs=(4,)) as pool:
        error = pool.submit(abs, 1).exception(PATIENCE_S)
        assert isinstance(error, BrokenPool)
        assert "exit code 4" in str(error)
        assert "no such device" in f"{error} {error.__cause__}"


def fail_in_the_second(path) -> None:
    with open(path, "a") as file:
        file.write("x")
        count = file.tell()
    if count > 1:
        raise ValueError("only one at a time")


def leave_when_open(gate: str) -> None:
    pass_gate(gate)
    os._exit(1)


def test_an_initializer_that_fails_in_a_later_worker_breaks_the_pool(tmp_path):
    with (
        HPCPoolExecutor(1, initializer=fail_in_the_second, initargs=(tmp_path / "count",)) as pool,
        Gate(tmp_path) as gate,
    ):
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1
        crash = pool.submit(leave_when_open, gate.path)
        behind = pool.submit(abs, 1)
        gate.open()
        error = behind.exception(PATIENCE_S)
        assert crash.exception(PATIENCE_S)
        assert isinstance(error, BrokenPool)
        assert "only one at a time" in str(error)


SITE = """
import os, sys
if {role!r} in sys.orig_argv:
    os.write(2, b"the {role} has no licence on this node\\n")
    os._exit(9)
"""
USES = """
from hpcpool import HPCPoolExecutor
with HPCPoolExecutor(1) as pool:
    try:
        error = pool.submit(abs, 1).exception(60)
        print(type(error).__name__, error, error.__cause__)
    except Exception as error:
        print("submit:", type(error).__name__, error)
print("over", flush=True)
"""


APART = with_own_manager(USES)


@pytest.mark.parametrize(
    ("role", "uses"), [("interchange", USES), ("fork-server", USES), ("fork-server", APART), ("manager", APART)]
)
def test_a_process_that_cannot_start_is_told_in_its_own_words(role, uses, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE.format(role=role))
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", ""), os.getcwd()])
    with script(tmp_path / "uses.py", uses, PYTHONPATH=path) as program:
        assert program.finish() == 0, program.err
        assert "over" in program.out
        assert f"the {role} has no licence on this node" in program.out, program.out
        assert "exit" in program.out


@pytest.mark.parametrize("executable", ["/bin/false", "/nowhere/python", "/etc/passwd"])
def test_an_interpreter_that_is_none(executable, tmp_path):
    text = f"import multiprocessing\nmultiprocessing.set_executable({executable!r})\n{USES}"
    with script(tmp_path / "uses.py", text) as program:
        assert program.finish() == 0, program.err
        assert "over" in program.out
        assert executable in program.out or "exit code 1" in program.out, program.out


def test_workers_that_cannot_be_spawned(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE.format(role="worker"))
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", ""), os.getcwd()])
    text = USES.replace("HPCPoolExecutor(1)", "HPCPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'))")
    with script(tmp_path / "uses.py", f"import multiprocessing\n{text}", PYTHONPATH=path) as program:
        assert program.finish() == 0, program.err
        assert "BrokenPool" in program.out
        assert "the worker has no licence on this node" in program.out, program.out


def test_a_temporary_directory_that_is_full_or_missing(tmp_path):
    with script(tmp_path / "uses.py", USES, TMPDIR="/nowhere") as program:
        assert program.finish() == 0, program.err
        assert "over" in program.out


def test_a_broken_pool_leaves_others_alone():
    with executor(1) as other:
        with HPCPoolExecutor(1, initializer=set_up_badly, initargs=("x",)) as pool:
            assert isinstance(pool.submit(abs, 1).exception(PATIENCE_S), BrokenPool)
        assert other.submit(abs, -2).result(PATIENCE_S) == 2
    assert sys.executable
