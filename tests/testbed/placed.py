"""A provider for tests: each block is one host of `tests.testbed.namespaces`, started there by a local command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from hpcpool.providers.base import BlockRequest, SubmitError
from hpcpool.providers.local import LocalDriver, LocalProvider
from tests.live import far
from tests.testbed.namespaces import Host


class PlacedDriver(LocalDriver):
    is_local = False
    free: list[Host]

    def submit(self, request: BlockRequest) -> str:
        if not self.free:
            raise SubmitError("all hosts have had their block")
        command = self.free.pop(0).command("bash", "-c", request.script)
        return super().submit(replace(request, command=command, script=""))


@dataclass(frozen=True)
class PlacedProvider:
    """Uses each of these hosts (name and number) once."""

    hosts: tuple[tuple[str, int], ...] = ()

    kind: ClassVar[str] = "placed"
    max_nodes_per_block: ClassVar[int | None] = 1

    def open(self, run_dir: str) -> PlacedDriver:
        driver = PlacedDriver(LocalProvider().open(run_dir)._epoll, run_dir)
        driver.free = [Host(*host) for host in self.hosts]
        return driver


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make it known to this process and to those that it starts."""
    far.install(monkeypatch, folder)
    points = next(folder.glob("*.dist-info")) / "entry_points.txt"
    points.write_text("[hpcpool.providers]\nplaced = tests.testbed.placed:PlacedProvider\n", encoding="utf-8")
