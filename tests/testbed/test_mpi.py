"""MPI steps inside a real Slurm job, beside the managers' own step, with Open MPI and mpi4py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool import HPCPoolExecutor, NodePool, mpi
from hpcpool.block_script import block_script
from hpcpool.launchers import MpiRunLauncher, SrunLauncher
from hpcpool.providers import SlurmProvider
from tests.testbed.machine import missing, require, until
from tests.testbed.slurm import NODES, Slurm

pytestmark = [pytest.mark.testbed, pytest.mark.usefixtures("slurm")]


@pytest.fixture(autouse=True)
def _open_mpi() -> None:
    require("openmpi-bin")
    if importlib.util.find_spec("mpi4py") is None:
        missing("mpi4py is not installed: the extra hpcpool[mpi]")


#: Open MPI does not like root, who runs these tests; and the nodes of a testbed are one machine, where shared memory
#: would mix them up.
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_btl": "tcp,self",
}
PATIENCE_S = 60.0


@pytest.fixture
def node_pool(slurm: Slurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[NodePool]:
    """Blocks of both nodes; in the end no job is left."""
    monkeypatch.setenv("HOME", str(tmp_path))
    provider = SlurmProvider(partition="main", poll_interval_s=1.0)
    options = {"nodes_per_block": 2, "workers_per_node": 2, "walltime": "00:05:00", "env": ENVIRONMENT}
    yield NodePool(provider, **options)  # type: ignore[arg-type]
    until(lambda: not slurm.jobs_left(), "no job is left")


def test_a_function_runs_on_all_ranks_on_both_nodes(node_pool):
    def where() -> tuple[int, int, str]:
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        return world.rank, world.allreduce(world.rank), os.environ["SLURMD_NODENAME"]

    with HPCPoolExecutor(node_pool) as pool:
        ranks = pool.options(nodes=2, ranks=4).submit(mpi.run_on_all, where).result(PATIENCE_S)
        assert sorted(node.host for node in pool.status().nodes) == sorted(NODES)
    assert [(rank, total) for rank, total, _ in ranks] == [(0, 6), (1, 6), (2, 6), (3, 6)]
    assert ranks[0][2] == ranks[1][2] != ranks[2][2] == ranks[3][2]


def import_mpi() -> tuple[int, int]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


@pytest.mark.parametrize("launcher", [SrunLauncher(), MpiRunLauncher("--allow-run-as-root")], ids=["srun", "mpirun"])
def test_a_call_without_nodes_is_an_mpi_program_of_its_own_and_steps_run_beside_it(node_pool, launcher):
    with HPCPoolExecutor(node_pool.replace(launcher=launcher)) as pool:
        pool.wait_for_workers(4, PATIENCE_S)
        calls = [pool.submit(import_mpi) for _ in range(4)]
        assert [call.result(PATIENCE_S) for call in calls] == [(0, 1)] * 4
        ranks = pool.options(nodes=2, ranks=4).submit(mpi.run_on_all, import_mpi).result(PATIENCE_S)
    assert ranks == [(rank, 4) for rank in range(4)]


@pytest.mark.parametrize(("program", "rank"), [("mpirun", "OMPI_COMM_WORLD_RANK"), ("srun", "SLURM_PROCID")])
def test_a_command_runs_as_a_step_on_both_nodes_beside_the_managers(node_pool, program, rank):
    node_pool = node_pool.replace(env={**ENVIRONMENT, "HPCPOOL_MPI": program})
    command = f"$HPCPOOL_MPI_PREFIX sh -c 'echo ${rank} $SLURMD_NODENAME'"
    with HPCPoolExecutor(node_pool) as pool:
        lines = pool.options(nodes=2, ranks=4).bash(command).result(PATIENCE_S).stdout.splitlines()
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1, "the managers' own step goes on"
    assert sorted(lines) == [f"{number} {NODES[number // 2]}" for number in range(4)]


#: The manager of the first node plays a call that has both nodes to itself.
CALL = """
import os, subprocess
from hpcpool import mpi

def where():
    from mpi4py import MPI
    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, os.environ["SLURMD_NODENAME"]

if os.environ["SLURM_NODEID"] == "0":
    listed = subprocess.run(["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True)
    os.environ.update(HPCPOOL_NODES=",".join(listed.stdout.split()), HPCPOOL_RANKS="3")
    print(mpi.run_on_all(where))
"""


def test_ranks_run_on_both_nodes_of_the_block(slurm, tmp_path):
    program = tmp_path / "call.py"
    program.write_text(CALL)
    text = block_script(
        (sys.executable, str(program)),
        nodes=2,
        block_dir=str(tmp_path / "block"),
        env={
            "PYTHONPATH": str(Path(__file__).parent.parent.parent),
            **ENVIRONMENT,
        },
        launcher=SrunLauncher(),
    )
    job = tmp_path / "job.sh"
    job.write_text(f"#!/bin/bash\n{text}")
    files = [f"--output={tmp_path}/out", f"--error={tmp_path}/err"]
    command = ["sbatch", "--wait", "--nodes=2", "--exclusive", *files, str(job)]
    subprocess.run(command, timeout=100, capture_output=True, check=False)
    until(lambda: not slurm.jobs_left(), "no job is left")
    nodes = [node for _, _, node in eval((tmp_path / "out").read_text() or "[]")]
    assert len(nodes) == 3, (tmp_path / "err").read_text()
    assert nodes[0] == nodes[1] != nodes[2]
