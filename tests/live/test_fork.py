"""`os.fork()` in a user's process: the child cannot use the pool and is told so; the parent's pool notices nothing."""

from __future__ import annotations

import psutil
import pytest

from tests.live.processes import Pool, kill
from tests.live.scripts import script
from tests.live.test_client_death import until_nothing_is_left

pytestmark = pytest.mark.live

FORKS = """
import os, sys, time
from hpcpool import HPCPoolExecutor

with HPCPoolExecutor(2) as pool:
    before = [pool.submit(pow, 2, n) for n in range(100)]
    pid = os.fork()
    if pid == 0:
        for attempt in (
            lambda: pool.submit(pow, 2, 2),
            lambda: next(pool.map(abs, [1])),
            lambda: pool.options(retries=1).submit(abs, 1),
        ):
            try:
                attempt()
            except RuntimeError as error:
                os.write(1, f"child: {error}\\n".encode())
        pool.shutdown()
        with HPCPoolExecutor(1) as mine:
            os.write(1, f"child has its own: {mine.submit(abs, -3).result()}\\n".encode())
        END
    after = [pool.submit(pow, 2, n) for n in range(100)]
    assert [future.result() for future in before + after] == [2**n for n in range(100)] * 2
    assert os.waitpid(pid, 0)[1] == 0
    assert pool.submit(pow, 2, 8).result() == 256
print("parent is done", flush=True)
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "del pool; sys.exit(0)"])
def test_a_forked_child_is_told_and_the_parent_goes_on(end, tmp_path):
    with script(tmp_path / "forks.py", FORKS.replace("END", end)) as program:
        assert program.finish() == 0, program.err
        assert program.out.count("child: this executor belongs to the parent of this process") == 3
        assert "child has its own: 3" in program.out
        assert "parent is done" in program.out


LIVES_ON = """
import os, sys, time
from hpcpool import HPCPoolExecutor
pool = HPCPoolExecutor(1)
pool.submit(abs, 1).result()
pid = os.fork()
if pid == 0:
    time.sleep(600)
print("child", pid, flush=True)
pool.submit(time.sleep, 600)
time.sleep(600)
"""


def test_the_clients_death_is_seen_although_a_forked_child_lives_on(tmp_path):
    with script(tmp_path / "lives_on.py", LIVES_ON) as program:
        program.wait_for("child")
        child = psutil.Process(int(program.out.split()[-1]))
        try:
            pool = Pool.below(program.pid)
            processes = pool.all()
            program.process.kill()
            program.process.wait()
            until_nothing_is_left(processes, pool.directory)
            assert child.is_running()
        finally:
            child.kill()


def test_a_forked_child_does_not_keep_the_directory_when_all_others_are_killed(tmp_path):
    with script(tmp_path / "lives_on.py", LIVES_ON) as program:
        program.wait_for("child")
        child = psutil.Process(int(program.out.split()[-1]))
        try:
            pool = Pool.below(program.pid)
            processes = pool.all()
            program.process.kill()
            kill(pool.interchange)
            program.process.wait()
            until_nothing_is_left(processes, pool.directory)
        finally:
            child.kill()


def test_multiprocessing_beside_a_pool(tmp_path):
    text = """
import multiprocessing, os
from hpcpool import HPCPoolExecutor
with HPCPoolExecutor(2) as pool:
    future = pool.submit(pow, 2, 3)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=abs, args=(n,)) for n in range(5)]
    for child in children:
        child.start()
    futures = [pool.submit(pow, 2, n) for n in range(50)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 5
    with context.Pool(2) as other:
        assert other.map(abs, [-1, -2]) == [1, 2]
    assert [future.result() for future in futures] == [2**n for n in range(50)]
"""
    with script(tmp_path / "multi.py", text) as program:
        assert program.finish() == 0, program.err


def test_a_fork_in_the_middle_of_much_submitting(tmp_path):
    text = """
import os, threading
from hpcpool import HPCPoolExecutor
with HPCPoolExecutor(2) as pool:
    go_on = True
    results = []
    def submit():
        while go_on:
            results.append(pool.submit(pow, 2, len(results) % 50).result(20))
    threads = [threading.Thread(target=submit) for _ in range(3)]
    for thread in threads:
        thread.start()
    forks = 0
    while forks < 30 or len(results) < 100:  # from the first moment of the start on
        forks += 1
        pid = os.fork()
        if pid == 0:
            try:
                pool.submit(abs, 1)
            except RuntimeError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
    go_on = False
    for thread in threads:
        thread.join()
print("done")
"""
    with script(tmp_path / "middle.py", text, python=("-W", "ignore::DeprecationWarning")) as program:
        assert program.finish() == 0, program.err
        assert "done" in program.out
