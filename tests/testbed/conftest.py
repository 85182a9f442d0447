"""The batch systems, each started once, by the first test that needs it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.slurm import Slurm


@pytest.fixture(scope="session")
def slurm(temporary_directory: Path) -> Iterator[Slurm]:
    """A Slurm whose commands work in this process, too."""
    yield from running(Slurm(Path(tempfile.mkdtemp(prefix="slurm-", dir=temporary_directory))))


def running(system: Slurm) -> Iterator[Slurm]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in system.environment.items():
            patch.setenv(name, value)
        try:
            system.start()
            yield system
        finally:
            system.stop()
