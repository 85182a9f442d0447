"""A provider for tests: each of its blocks is two nodes, processes of this machine as in `tests.live.far`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from hpcpool.launchers import Launcher, WrappedLauncher
from hpcpool.providers.base import BlockRequest
from hpcpool.providers.local import LocalDriver, LocalProvider
from tests.live import far


class TwinsDriver(LocalDriver):
    is_local = False

    def submit(self, request: BlockRequest) -> str:
        return super().submit(replace(request, nodes=1))  # the script starts them both


@dataclass(frozen=True)
class TwinsProvider:
    kind: ClassVar[str] = "twins"
    max_nodes_per_block: ClassVar[int | None] = 2
    default_launcher: ClassVar[Launcher] = WrappedLauncher("""bash -c '"$@" & "$@" & wait' twins""")

    def open(self, run_dir: str) -> TwinsDriver:
        return TwinsDriver(LocalProvider().open(run_dir)._epoll, run_dir)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make it known to this process and to those that it starts."""
    far.install(monkeypatch, folder)
    points = next(folder.glob("*.dist-info")) / "entry_points.txt"
    points.write_text("[hpcpool.providers]\ntwins = tests.live.twins:TwinsProvider\n", encoding="utf-8")
