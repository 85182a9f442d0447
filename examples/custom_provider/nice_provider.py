"""A provider of one's own: each block is a background process of this machine, as polite as `nice` makes it.

A real one would run the batch system's commands where this one starts, looks at and ends processes. With this folder
installed (`pip install examples/custom_provider`), `provider = {kind = "nice", level = 10}` works in a TOML file.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hpcpool.providers import BlockRequest, JobState, JobStatus, SubmitError


@dataclass(frozen=True)
class NiceProvider:
    """The options: what a user writes down.

    Args:
        level: of niceness, from 0 to 19.
    """

    level: int = 10

    #: The word for it in TOML files; the name of the entry point is the same.
    kind: ClassVar[str] = "nice"
    max_nodes_per_block: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 19:
            raise ValueError(f"level is {self.level!r}; valid: 0 to 19")

    def open(self, run_dir: str) -> NiceDriver:
        return NiceDriver(self.level, Path(run_dir))


class NiceDriver:
    """Starts, watches and ends the processes. The job id is the process id."""

    #: `status` is called every so many seconds.
    poll_interval_s = 2.0
    #: There is no descriptor that tells of news.
    watch_fd = None
    #: False: managers connect as from another machine, and inherit nothing.
    is_local = False

    def __init__(self, level: int, run_dir: Path) -> None:
        self._level = level
        self._run_dir = run_dir
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._folders: dict[str, Path] = {}
        self._cancelled: set[str] = set()

    def block_dir(self, block_id: str) -> str:
        return str(self._run_dir / f"nice-{block_id}")

    def submit(self, request: BlockRequest) -> str:
        folder = Path(self.block_dir(request.block_id))
        folder.mkdir(mode=0o700)
        for name, content in request.files.items():
            (folder / name).write_bytes(content)
        (folder / "job.sh").write_text(request.script or shlex.join(request.command))
        try:
            with open(folder / "job.out", "wb") as out, open(folder / "job.err", "wb") as err:
                process = subprocess.Popen(
                    ["nice", "-n", str(self._level), "bash", "job.sh"],
                    cwd=folder,
                    env={**os.environ, **request.env},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
        except OSError as error:
            raise SubmitError(f"nice cannot be run: {error}") from error
        job = str(process.pid)
        self._processes[job], self._folders[job] = process, folder
        return job

    def status(self, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        return {job: self._status(job) for job in job_ids}

    def _status(self, job: str) -> JobStatus:
        process = self._processes.get(job)
        if process is None:  # of a driver that has died: `hpcpool cleanup` asks
            return JobStatus(JobState.RUNNING if Path("/proc", job).exists() else JobState.ENDED)
        code = process.poll()
        if code is None:
            return JobStatus(JobState.RUNNING)
        if code == 0 or job in self._cancelled:
            return JobStatus(JobState.ENDED, code)
        tail = (self._folders[job] / "job.err").read_text(errors="replace")[-2000:].strip()
        return JobStatus(JobState.FAILED, code, f"exited with code {code}", stderr_tail=tail)

    def cancel(self, job_ids: Sequence[str]) -> None:
        for job in job_ids:
            # The first time it is asked to end; who asks again has waited long enough.
            how = signal.SIGKILL if job in self._cancelled else signal.SIGTERM
            self._cancelled.add(job)
            if not self._status(job).state.is_over:
                os.killpg(int(job), how)

    def close(self) -> None:
        """Nothing is held: who closes it has cancelled the jobs."""
