"""MPI steps on this machine, with Open MPI and mpi4py where they are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from hpcpool import mpi
from hpcpool.bash import BashCommand, run_bash
from hpcpool.errors import MPIError
from hpcpool.mpi import step
from tests.conftest import wait_until

IS_THERE = shutil.which("mpirun") is not None and importlib.util.find_spec("mpi4py") is not None
needs_mpi = pytest.mark.skipif(not IS_THERE, reason="needs Open MPI's mpirun and mpi4py")
#: This machine has fewer cores than a test has ranks, and may be root's.
HERE = {
    "HPCPOOL_NODES": "localhost",
    "HPCPOOL_RANKS": "3",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


@pytest.fixture
def nodes(monkeypatch) -> None:
    """The surroundings of a call that has this machine to itself, with three ranks."""
    for name, value in HERE.items():
        monkeypatch.setenv(name, value)


def sum_of_ranks(factor: int) -> tuple[int, int]:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    print("printed by a rank, without a newline", end="")
    return comm.allreduce(comm.rank * factor), comm.size


def rank_and_name() -> tuple[int, str]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, os.path.basename(os.getcwd())


def fail_at(rank: int) -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == rank:
        raise LookupError(f"rank {rank} does not like it")
    MPI.COMM_WORLD.Barrier()


def die_at(rank: int) -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    MPI.COMM_WORLD.Barrier()


def stay(folder: str) -> None:
    from mpi4py import MPI

    Path(folder, f"{os.getpid()}").touch()
    MPI.COMM_WORLD.recv(source=0)


# With ranks


@needs_mpi
@pytest.mark.testbed
def test_all_ranks_run_the_function_and_the_first_one_s_result_comes_back(nodes):
    assert mpi.run(sum_of_ranks, factor=10) == (30, 3)


@needs_mpi
@pytest.mark.testbed
def test_the_results_of_all_ranks_come_back_in_their_order(nodes, tmp_path, monkeypatch):
    folder = tmp_path / "where the call is"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert mpi.run_on_all(rank_and_name) == [(rank, folder.name) for rank in range(3)]


@needs_mpi
@pytest.mark.testbed
@pytest.mark.parametrize("rank", [0, 2])
def test_what_one_rank_raises_is_raised_and_ends_the_others(nodes, rank):
    with pytest.raises(LookupError, match=f"rank {rank} does not like it") as caught:
        mpi.run(fail_at, rank)
    assert "in fail_at" in str(caught.value.__cause__)


@needs_mpi
@pytest.mark.testbed
def test_a_rank_that_dies_is_an_error_that_says_how_the_step_ended(nodes):
    with pytest.raises(
        MPIError, match=r"3 MPI ranks on localhost gave no answer: mpirun ended with code 137"
    ) as caught:
        mpi.run(die_at, 1)
    assert caught.value.returncode == 137


@needs_mpi
@pytest.mark.testbed
def test_the_ranks_end_when_the_process_that_started_them_is_killed(nodes, tmp_path):
    code = f"from hpcpool import mpi; from tests.mpi.test_step import stay; mpi.run(stay, {str(tmp_path)!r})"
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent.parent)
    assert wait_until(lambda: len(list(tmp_path.iterdir())) == 3, timeout_s=60)
    ranks = {int(path.name) for path in tmp_path.iterdir()}
    below = {process.pid for process in psutil.Process(starter.pid).children(recursive=True)}  # mpirun, too
    starter.kill()
    starter.wait()
    assert wait_until(lambda: not any(is_alive(pid) for pid in ranks | below), timeout_s=60)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@needs_mpi
@pytest.mark.testbed
def test_ranks_that_each_see_only_themselves_are_told_so(nodes, tmp_path, monkeypatch):
    launcher = tmp_path / "srun"
    launcher.write_text('#!/bin/bash\nwhile [[ $1 = -* ]]; do shift; done\n"$@" & "$@"; wait\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("HPCPOOL_MPI", str(launcher))
    with pytest.raises(MPIError, match="3 ranks were started, but each sees 1: .* name another one in HPCPOOL_MPI"):
        mpi.run(sum_of_ranks, 1)


@needs_mpi
@pytest.mark.testbed
def test_a_call_of_a_pool_runs_functions_and_classes_of_the_user_s_program_on_ranks(nodes, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            import hpcpool
            from hpcpool import mpi

            @dataclass
            class Point:
                x: int

            START = 100

            def simulate(n):
                from mpi4py import MPI
                return Point(MPI.COMM_WORLD.allreduce(n) + START)

            with hpcpool.HPCPoolExecutor(1) as ex:
                points = ex.submit(mpi.run_on_all, simulate, 2).result()
                print(points == [Point(106)] * 3)
                print(ex.bash("$HPCPOOL_MPI_PREFIX echo here").result().stdout.split())
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=100, env=environment)
    assert (done.returncode, done.stdout) == (0, "True\n['here', 'here', 'here']\n"), done.stderr


# Without


def test_a_call_without_nodes_is_told_what_to_do(monkeypatch):
    monkeypatch.delenv("HPCPOOL_NODES", raising=False)
    with pytest.raises(RuntimeError, match=r"submit it with ex\.options\(nodes=\.\.\., ranks=\.\.\.\)"):
        mpi.run(sum_of_ranks, 1)


def test_without_a_program_to_start_ranks_the_error_says_so_and_a_bash_call_goes_on(nodes, monkeypatch, tmp_path):
    for name in ("bash", "sh"):
        (tmp_path / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MPIError, match="no ranks can be started: there is neither mpiexec nor srun on the PATH"):
        mpi.prefix()
    assert str(run_bash(BashCommand.of("echo ${{HPCPOOL_MPI_PREFIX-unset}}"))) == "unset"


def test_a_program_that_cannot_be_started_is_an_error(nodes, monkeypatch):
    monkeypatch.setenv("HPCPOOL_MPI", "/no/such/mpirun")
    with pytest.raises(MPIError, match="cannot start /no/such/mpirun"):
        mpi.run(sum_of_ranks, 1)


def test_ranks_that_end_without_an_answer_are_an_error_with_the_program_s_code(nodes, monkeypatch, tmp_path):
    launcher = tmp_path / "mpirun"
    launcher.write_text("#!/bin/bash\nexit 5\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("HPCPOOL_MPI", str(launcher))
    with pytest.raises(MPIError, match=r"3 MPI ranks on localhost gave no answer: .* ended with code 5") as caught:
        mpi.run(sum_of_ranks, 1)
    assert caught.value.returncode == 5


def test_a_bash_call_with_nodes_has_the_prefix_and_its_own_variables(nodes, monkeypatch):
    monkeypatch.setenv("HPCPOOL_MPI", "mpirun --tag-output")
    monkeypatch.setenv("PMIX_RANK", "0")
    result = run_bash(BashCommand.of("echo $HPCPOOL_MPI_PREFIX ${{PMIX_RANK-none}} $X", env={"X": 3}))
    assert str(result) == "mpirun --mca ras ^slurm,tm,gridengine,lsf -n 3 --host localhost:3 --tag-output none 3"


def test_a_bash_call_without_nodes_has_no_prefix(monkeypatch):
    monkeypatch.delenv("HPCPOOL_NODES", raising=False)
    assert step.bash_environment({"A": "1"}) == {"A": "1"}
