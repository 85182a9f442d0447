"""A run directory, as a pool has one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool.wire import run_directory


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[str]:
    directory = tmp_path / "hpcpool-run"
    directory.mkdir()
    lock = run_directory.prepare(str(directory))
    yield str(directory)
    os.close(lock)
    run_directory.remove(str(directory))
