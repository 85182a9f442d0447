"""A provider for tests: its blocks are processes of this machine that do not see one folder of it, but an empty one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from hpcpool.providers.base import BlockRequest
from hpcpool.providers.local import LocalDriver, LocalProvider
from tests.live import far


def without(folder: str, *argv: str) -> tuple[str, ...]:
    """What runs a command that finds an empty folder in place of this one."""
    return ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', folder, *argv)


class ApartDriver(LocalDriver):
    is_local = False
    hidden: str

    def submit(self, request: BlockRequest) -> str:
        command = without(self.hidden, "bash", "-c", request.script)
        return super().submit(replace(request, command=command, script=""))


@dataclass(frozen=True)
class ApartProvider:
    """Hides a folder of the client from nodes."""

    hidden: str = ""

    kind: ClassVar[str] = "apart"
    max_nodes_per_block: ClassVar[int | None] = 1

    def open(self, run_dir: str) -> ApartDriver:
        driver = ApartDriver(LocalProvider().open(run_dir)._epoll, run_dir)
        driver.hidden = self.hidden
        return driver


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make it known to this process and to those that it starts."""
    far.install(monkeypatch, folder)
    points = next(folder.glob("*.dist-info")) / "entry_points.txt"
    points.write_text("[hpcpool.providers]\napart = tests.testbed.apart:ApartProvider\n", encoding="utf-8")
