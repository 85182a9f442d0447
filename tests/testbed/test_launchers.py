"""Launchers with the real programs: Slurm's `srun`, Open MPI's `mpirun` in a Slurm job, and `ssh` to two servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool.block_script import block_script
from hpcpool.launchers import Launcher, MpiRunLauncher, SrunLauncher, SSHLauncher
from tests.conftest import wait_until
from tests.testbed import sshd
from tests.testbed.machine import require, until
from tests.testbed.slurm import Slurm

needs_slurm = pytest.mark.usefixtures("slurm")
pytestmark = pytest.mark.testbed

#: Stands for a manager: writes what it sees into files of the node's own, in the folder of the block.
MANAGER = """
import os, pathlib, signal, sys, time
node = os.environ.get("SLURMD_NODENAME") or os.environ["SSH_CONNECTION"].split()[2]
def end(number, frame):
    pathlib.Path(f"told-{node}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(f".{node}").write_text(os.environ["MADE"])
os.rename(f".{node}", f"up-{node}")  # there with all that is in it
if sys.argv[1:] == ["first fails"] and os.environ.get("SLURM_NODEID") == "0":
    sys.exit(4)
while not pathlib.Path("end").exists():
    time.sleep(0.05)
pathlib.Path(f"done-{node}").touch()
"""


@pytest.fixture
def block(tmp_path) -> Path:
    folder = tmp_path / "a block"
    folder.mkdir()
    return folder


def script(block: Path, launcher: Launcher, *words: str) -> str:
    return block_script(
        (sys.executable, "-c", MANAGER, *words),
        nodes=2,
        block_dir=str(block),
        worker_init="echo prepared >&2\nexport MADE=it\\'s",
        env={"PYTHONPATH": str(Path(__file__).parent.parent.parent)},
        launcher=launcher,
    )


def count(block: Path, prefix: str) -> int:
    return len(list(block.glob(f"{prefix}-*")))


def wait_for(block: Path, prefix: str, number: int) -> None:
    assert wait_until(lambda: count(block, prefix) == number, timeout_s=60), list(block.iterdir())


# Slurm


class Job:
    """A job of two nodes."""

    def __init__(self, folder: Path, text: str) -> None:
        file = folder / "job.sh"
        file.write_text(f"#!/bin/bash\n{text}")
        options = ["--parsable", "--nodes=2", "--exclusive", f"--output={folder}/out", f"--error={folder}/err"]
        done = subprocess.run(["sbatch", *options, str(file)], capture_output=True, text=True, check=True)
        self.id = done.stdout.strip()

    def signal(self, *words: str) -> None:
        subprocess.run(["scancel", "--quiet", *words, self.id], check=True)

    def state(self) -> str:
        shown = subprocess.run(["scontrol", "--oneliner", "show", "job", self.id], capture_output=True, text=True)
        words = dict(word.partition("=")[::2] for word in shown.stdout.split())
        return f"{words.get('JobState')} {words.get('ExitCode')}"


@pytest.fixture
def job(slurm: Slurm) -> Iterator[list[Job]]:
    """Where a test puts its job, so that it is ended, and none of its processes is left."""
    jobs: list[Job] = []
    yield jobs
    for one in jobs:
        one.signal()
    until(lambda: not slurm.jobs_left(), "no job is left")


@needs_slurm
def test_srun_starts_a_manager_on_each_node_and_one_that_fails_ends_no_other(tmp_path, block, job):
    job.append(Job(tmp_path, script(block, SrunLauncher(), "first fails")))
    wait_for(block, "up", 2)
    assert [path.read_text() for path in block.glob("up-*")] == ["it's"] * 2
    # While they run, a step of a call runs on the same nodes.
    step = ["srun", f"--jobid={job[0].id}", "--nodes=2", "--ntasks=2", "--overlap", "true"]
    assert subprocess.run(step, timeout=60, capture_output=True).returncode == 0
    (block / "end").touch()
    wait_for(block, "done", 1)
    assert wait_until(lambda: job[0].state() == "FAILED 4:0", timeout_s=60), job[0].state()
    assert (tmp_path / "err").read_text().count("prepared\n") == 2


@needs_slurm
@pytest.mark.parametrize(("words", "state"), [(["--batch", "--signal=TERM"], "COMPLETED"), ([], "CANCELLED")])
def test_slurm_s_end_of_a_job_tells_each_manager(tmp_path, block, job, words, state):
    job.append(Job(tmp_path, script(block, SrunLauncher())))
    wait_for(block, "up", 2)
    job[0].signal(*words)
    wait_for(block, "told", 2)
    assert wait_until(lambda: job[0].state().split()[0] == state, timeout_s=60), job[0].state()


# mpirun


@pytest.fixture
def mpirun() -> MpiRunLauncher:
    """Open MPI does not like root, who runs these tests."""
    require("openmpi-bin")
    return MpiRunLauncher("--allow-run-as-root")


@needs_slurm
def test_mpirun_starts_a_manager_on_each_node_and_one_that_fails_ends_no_other(tmp_path, block, job, mpirun):
    job.append(Job(tmp_path, script(block, mpirun, "first fails")))
    wait_for(block, "up", 2)
    assert [path.read_text() for path in block.glob("up-*")] == ["it's"] * 2
    (block / "end").touch()
    wait_for(block, "done", 1)
    assert wait_until(lambda: job[0].state().split()[0] in ("COMPLETED", "FAILED"), timeout_s=60), job[0].state()
    assert (tmp_path / "err").read_text().count("prepared\n") == 2


@needs_slurm
def test_the_end_of_the_block_is_told_by_mpirun(tmp_path, block, job, mpirun):
    job.append(Job(tmp_path, script(block, mpirun)))
    wait_for(block, "up", 2)
    job[0].signal("--batch", "--signal=TERM")
    wait_for(block, "told", 2)


# SSH


@pytest.fixture
def hosts(tmp_path) -> Iterator[list[str]]:
    """Two servers, by the names that the file `ssh_config` has for them."""
    require("openssh-server", "openssh-client")
    key = sshd.make_key(tmp_path / "key")
    servers = [sshd.Server(tmp_path / name, f"127.0.0.{10 + n}", key) for n, name in enumerate(("one", "two"), 1)]
    config = ""
    try:
        for server in servers:
            server.folder.mkdir()
            server.start()
            config += f"Host {server.folder.name}\n HostName {server.address}\n Port {server.port}\n"
            config += f" IdentityFile {key}\n UserKnownHostsFile {server.known_hosts()}\n"
        (tmp_path / "ssh_config").write_text(config)
        yield [server.folder.name for server in servers]
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def ssh_block(tmp_path, block, hosts) -> Iterator[subprocess.Popen[str]]:
    """The script of a block on two servers, started, with both managers up."""
    first, second = hosts
    nodes = tmp_path / "nodes"
    nodes.write_text(f"{first}\n{first}\n{second}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_JOB")}
    process = subprocess.Popen(
        ["bash", "-c", script(block, SSHLauncher(f"-F {tmp_path}/ssh_config"))],
        env=kept | {"PBS_NODEFILE": str(nodes)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(block, "up", 2)
        yield process
    finally:
        (block / "end").touch()
        process.communicate(timeout=30)


def test_ssh_starts_a_manager_on_each_host_and_waits_for_both(block, ssh_block):
    (block / "end").touch()
    _, stderr = ssh_block.communicate(timeout=60)
    assert (ssh_block.returncode, count(block, "done")) == (0, 2)
    assert stderr.count("prepared\n") == 2


def test_the_end_of_the_block_is_told_over_ssh(block, ssh_block):
    ssh_block.send_signal(signal.SIGTERM)
    _, stderr = ssh_block.communicate(timeout=60)
    assert (ssh_block.returncode, count(block, "told")) == (0, 2), stderr


def test_managers_end_when_the_block_s_first_node_is_killed(block, ssh_block):
    launcher = int(subprocess.run(["pgrep", "-P", str(ssh_block.pid)], capture_output=True, check=True).stdout)
    ssh_block.kill()
    os.kill(launcher, signal.SIGKILL)
    wait_for(block, "told", 2)
