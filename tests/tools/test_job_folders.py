from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcpool.tools.job_folders import old_folders

NOW = 1_000_000_000.0


@pytest.fixture
def make(tmp_path: Path):
    """Make the folder of a failed job, which was last written to so many seconds ago."""
    (tmp_path / "journal").mkdir()

    def make(run: str, age_s: float) -> Path:
        block = tmp_path / "runs" / run / "default-0"
        block.mkdir(parents=True)
        (block / "job.err").touch()
        for path in (block / "job.err", block, block.parent):
            os.utime(path, (NOW - age_s,) * 2)
        return block.parent

    return make


def old(tmp_path: Path) -> list[Path]:
    return list(old_folders(tmp_path / "runs", tmp_path / "journal", NOW - 100))


def test_folders_that_nothing_was_written_to_for_long_are_old(make, tmp_path):
    folder = make("hpcpool-a", 101)
    make("hpcpool-b", 99)
    assert old(tmp_path) == [folder]


def test_what_a_job_has_lately_written_counts(make, tmp_path):
    folder = make("hpcpool-a", 101)
    os.utime(folder / "default-0" / "job.err", (NOW, NOW))
    assert old(tmp_path) == []


def test_a_run_with_a_journal_may_go_on(make, tmp_path):
    make("hpcpool-a", 101)
    (tmp_path / "journal" / "hpcpool-a@login2.jsonl").touch()
    assert old(tmp_path) == []


def test_what_is_not_of_a_run_is_left_alone(make, tmp_path):
    make("mine", 101)
    assert old(tmp_path) == []


def test_where_there_was_never_a_job_nothing_is_old(tmp_path):
    assert old(tmp_path) == []
