"""MPI steps inside a real Slurm job, beside the managers' own step, with Open MPI and mpi4py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from hpcpool.block_script import block_script
from hpcpool.launchers import SrunLauncher
from tests.testbed.machine import missing, require

pytestmark = [pytest.mark.testbed, pytest.mark.usefixtures("slurm")]


@pytest.fixture(autouse=True)
def _open_mpi() -> None:
    require("openmpi-bin")
    if importlib.util.find_spec("mpi4py") is None:
        missing("mpi4py is not installed: the extra hpcpool[mpi]")


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


def test_ranks_run_on_both_nodes_of_the_block(tmp_path):
    program = tmp_path / "call.py"
    program.write_text(CALL)
    text = block_script(
        (sys.executable, str(program)),
        nodes=2,
        block_dir=str(tmp_path / "block"),
        env={
            "PYTHONPATH": str(Path(__file__).parent.parent.parent),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_btl": "tcp,self",  # nodes of a testbed may be one machine: shared memory would mix them up
        },
        launcher=SrunLauncher(),
    )
    job = tmp_path / "job.sh"
    job.write_text(f"#!/bin/bash\n{text}")
    files = [f"--output={tmp_path}/out", f"--error={tmp_path}/err"]
    command = ["sbatch", "--wait", "--nodes=2", "--exclusive", *files, str(job)]
    subprocess.run(command, timeout=100, capture_output=True, check=False)
    nodes = [node for _, _, node in eval((tmp_path / "out").read_text() or "[]")]
    assert len(nodes) == 3, (tmp_path / "err").read_text()
    assert nodes[0] == nodes[1] != nodes[2]
