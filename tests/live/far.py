"""A provider for tests: its blocks are processes of this machine that it treats as if they were on another one.

They come over TCP with a key, have a run directory of their own, and share no memory with the client.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from hpcpool.providers.local import LocalDriver, LocalProvider, _Job, _session_members

#: What is left of a job when its first process has ended may last this long (seconds): Slurm's KillWait, shorter.
_KILL_WAIT_S = 10.0


class FarDriver(LocalDriver):
    is_local = False

    def _settle(self, job: _Job) -> None:
        """Let what is left of a job end by itself, as batch systems do, before it is killed."""
        left = []
        for pid in _session_members(job.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.append(psutil.Process(pid))
        psutil.wait_procs(left, _KILL_WAIT_S)
        super()._settle(job)


@dataclass(frozen=True)
class FarProvider:
    kind: ClassVar[str] = "far"
    max_nodes_per_block: ClassVar[int | None] = 1

    def open(self, run_dir: str) -> FarDriver:
        return FarDriver(LocalProvider().open(run_dir)._epoll, run_dir)


_ENTRY_POINTS = """[hpcpool.providers]
far = tests.live.far:FarProvider
tunnelled = tests.live.tunnel:TunnelledProvider
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make it known to this process and to those that it starts, as an installed package does."""
    info = folder / "hpcpool_far-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hpcpool-far\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS, encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{root}")
    monkeypatch.syspath_prepend(str(folder))
