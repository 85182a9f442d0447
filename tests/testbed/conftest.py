"""The batch systems, each started once, by the first test that needs it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.testbed.gridengine import GridEngine
from tests.testbed.slurm import Slurm


@pytest.fixture(scope="session")
def slurm(temporary_directory: Path) -> Iterator[Slurm]:
    """A Slurm whose commands work in this process, too."""
    system = Slurm(Path(tempfile.mkdtemp(prefix="slurm-", dir=temporary_directory)))
    with running(system):
        yield system


@pytest.fixture(scope="session")
def gridengine(temporary_directory: Path) -> Iterator[GridEngine]:
    """A Grid Engine whose commands work in this process, too."""
    system = GridEngine(Path(tempfile.mkdtemp(prefix="sge-", dir=temporary_directory)))
    with running(system):
        yield system


@contextmanager
def running(system: Slurm | GridEngine) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in system.environment.items():
            patch.setenv(name, value)
        try:
            system.start()
            yield
        finally:
            system.stop()
