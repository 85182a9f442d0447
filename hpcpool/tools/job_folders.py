"""The folders that failed jobs have left in `~/.hpcpool/runs`, and which of them are old; nothing is removed here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def runs_folder() -> Path:
    """Return where the folders of jobs are, unless a provider's `job_dir` says otherwise."""
    return Path(os.path.expanduser("~"), ".hpcpool", "runs")


def old_folders(runs: Path, journals: Path, before: float) -> Iterator[Path]:
    """Return the folders of runs that are over and have not been written to since `before` (seconds since the epoch).

    A run that has a journal may go on, on whatever host. One that was driven from another machine has its journal
    there: so nothing is taken for old that a job has lately written to.

    Args:
        runs: has a folder for each run.
        journals: has the journals of all hosts.
        before: see above.
    """
    if not runs.is_dir():
        return
    for folder in sorted(runs.iterdir()):
        has_journal = any(journals.glob(f"{folder.name}@*"))
        if folder.name.startswith("hpcpool-") and folder.is_dir() and not has_journal and _newest(folder) < before:
            yield folder


def _newest(folder: Path) -> float:
    return max(os.lstat(path).st_mtime for path in (folder, *folder.rglob("*")))
