"""A batch system whose queue is a folder: jobs are processes of this machine, and tests say how it behaves with files.

`hold` (all jobs wait, for this reason), `refuse` (no job is taken, for this reason), `outage` (no question is
answered), `die` (jobs write this to stderr and exit with 3), `walltime` (seconds that a job may last), `slow` (seconds
that each answer takes), `hang` (it does not come while this is there; what `hanging` counts). Jobs outlive the process
that asked for them, as they do on a cluster.
"""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from hpcpool import NodePool
from hpcpool.providers import BlockRequest, JobState, JobStatus, SubmitError, Unreachable
from tests.live.processes import until
from tests.providers.plugin import install

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class FolderProvider:
    """The options: the folder."""

    folder: str
    kind: ClassVar[str] = "folders"
    max_nodes_per_block: ClassVar[int | None] = None

    def open(self, run_dir: str) -> FolderDriver:
        return FolderDriver(Path(self.folder), run_dir)


class FolderDriver:
    poll_interval_s = 0.1
    watch_fd = None
    is_local = False

    def __init__(self, folder: Path, run_dir: str) -> None:
        self.folder = folder
        self.run_dir = run_dir

    def block_dir(self, block_id: str) -> str:
        return os.path.join(self.run_dir, f"block-{block_id}")

    def told(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return None

    def count(self, what: str) -> None:
        with (self.folder / what).open("a") as file:
            file.write("x")

    def submit(self, request: BlockRequest) -> str:
        self.count("submissions")
        time.sleep(float(self.told("slow") or 0))
        if self.told("outage") is not None:
            raise Unreachable("cannot reach the controller")
        if (reason := self.told("refuse")) is not None:
            raise SubmitError(reason)
        files = Path(self.block_dir(request.block_id))
        files.mkdir(mode=0o700)
        for name, content in request.files.items():
            (files / name).write_bytes(content)
        job = new_folder(self.folder / "jobs")
        (job / "block").write_text(request.block_id)
        (job / "stderr").write_text("")
        start = request.script or shlex.join(request.command)
        if (last_words := self.told("die")) is not None:
            start = f"echo {shlex.quote(last_words)} >&2; exit 3"
        (job / "script").write_text(f"cd {shlex.quote(request.cwd)}\n{start}\n")
        self.start(job)
        return job.name

    def start(self, job: Path) -> None:
        if self.told("hold") is not None or (job / "started").exists():
            return
        (job / "started").write_text(str(time.time()))
        walltime = self.told("walltime")
        limit = f"timeout -k 10 {walltime} " if walltime else ""  # TERM first, as batch systems do
        text = f"{limit}bash {job}/script 2>> {job}/stderr; echo $? > {job}/code.new; mv {job}/code.new {job}/code"
        process = subprocess.Popen(["bash", "-c", text], start_new_session=True)
        (job / "pid.new").write_text(str(process.pid))
        (job / "pid.new").rename(job / "pid")

    def status(self, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        self.count("questions")
        time.sleep(float(self.told("slow") or 0))
        if self.told("hang") is not None:
            self.count("hanging")
        while self.told("hang") is not None:
            time.sleep(0.01)
        if self.told("outage") is not None:
            return dict.fromkeys(job_ids, JobStatus(JobState.UNKNOWN, reason="cannot reach the controller"))
        return {job_id: self.state(self.folder / "jobs" / job_id) for job_id in job_ids}

    def state(self, job: Path) -> JobStatus:
        if (job / "cancelled").exists():
            return JobStatus(JobState.ENDED, reason="CANCELLED")
        if (job / "preempted").exists():
            return JobStatus(JobState.FAILED, reason="PREEMPTED")
        if (job / "code").exists():
            code = int((job / "code").read_text())
            words = "COMPLETED" if code == 0 else "TIMEOUT" if code in (124, 137) else "FAILED"
            state = JobState.ENDED if code == 0 else JobState.FAILED
            return JobStatus(state, code, words, (job / "stderr").read_text().strip())
        self.start(job)
        if not (job / "started").exists():
            return JobStatus(JobState.PENDING, reason=self.told("hold") or "")
        walltime = self.told("walltime")
        ends_at = float((job / "started").read_text()) + float(walltime) if walltime else None
        return JobStatus(JobState.RUNNING, ends_at=ends_at)

    def cancel(self, job_ids: Sequence[str]) -> None:
        if self.told("outage") is None:
            for job_id in job_ids:
                end_job(self.folder / "jobs" / job_id)

    def close(self) -> None:
        pass


def new_folder(parent: Path) -> Path:
    for number in itertools.count(1):
        try:
            (parent / str(number)).mkdir()
        except FileExistsError:
            continue
        return parent / str(number)
    raise AssertionError


def is_over(job: Path) -> bool:
    return any((job / name).exists() for name in ("code", "cancelled", "preempted"))


def end_job(job: Path, how: str = "cancelled") -> None:
    if is_over(job) or not job.exists():
        return
    (job / how).touch()
    if (job / "pid").exists():
        try:
            os.killpg(int((job / "pid").read_text()), signal.SIGKILL)
        except ProcessLookupError:
            return


class FolderSystem:
    """The test's hand on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)

    def behave(self, name: str, text: str = "") -> None:
        (self.folder / f"{name}.new").write_text(text)
        (self.folder / f"{name}.new").rename(self.folder / name)

    def recover(self, name: str) -> None:
        (self.folder / name).unlink()

    def preempt(self) -> None:
        """Give the nodes of all jobs to somebody else."""
        for job in self.alive:
            end_job(job, "preempted")

    def counted(self, what: str) -> int:
        """How many `submissions` were tried, or `questions` asked, and how many of these were `hanging`."""
        path = self.folder / what
        return path.stat().st_size if path.exists() else 0

    @property
    def jobs(self) -> list[Path]:
        return sorted((self.folder / "jobs").iterdir(), key=lambda job: int(job.name))

    @property
    def alive(self) -> list[Path]:
        """Jobs in the queue: those that wait and those that run."""
        return [job for job in self.jobs if not is_over(job)]

    def pool(self, **options: object) -> NodePool:
        options = {"workers_per_node": 1, "max_idle_time": None} | options
        return NodePool(FolderProvider(str(self.folder)), **options)  # type: ignore[arg-type]


@contextmanager
def folder_system(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[FolderSystem]:
    """Install the provider for this process and those that it starts; no job is left."""
    plugin = folder / "plugin"
    plugin.mkdir()
    install(monkeypatch, plugin, "from tests.live.folder_system import FolderProvider\n", folders="FolderProvider")
    paths = [str(plugin), str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("HOME", str(folder / "home"))
    (folder / "home").mkdir()
    system = FolderSystem(folder / "system")
    try:
        yield system
        until(lambda: not system.alive, f"the end of the jobs {system.alive}")
    finally:
        for job in system.jobs:
            end_job(job)
