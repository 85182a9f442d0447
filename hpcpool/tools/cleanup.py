"""`hpcpool cleanup`: ends the jobs that dead runs have left in batch systems, and removes folders nobody needs."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import time
from collections.abc import Collection
from pathlib import Path

from hpcpool.processes.journal import Entries, journal_folder, read_journal
from hpcpool.processes.leftovers import end_jobs
from hpcpool.tools.job_folders import old_folders, runs_folder
from hpcpool.wire import run_directory

#: The first line of a journal is on the disk within this time (seconds), even on a slow file system.
_BEING_WRITTEN_S = 60.0
#: What failed jobs have printed can be read for so long (days); and no job that still runs has been silent as long.
_KEPT_DAYS = 30.0
_DAY_S = 86400.0
_ABOUT = (
    "Find the runs of yours on this host whose processes have died, cancel the jobs that they have left in batch "
    "systems, and remove their folders; then remove what failed jobs have left in ~/.hpcpool/runs long ago. "
    "Runs that go on are left alone. Exit code 1: something may be left."
)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("cleanup", help="end the jobs that dead runs have left", description=_ABOUT)
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="HOST",
        help="take the runs of this host for dead as well, because it is lost (may be given several times)",
    )
    parser.add_argument(
        "--keep-days",
        type=float,
        default=_KEPT_DAYS,
        metavar="DAYS",
        help="keep the folders of failed jobs for so many days after they were last written to (default: %(default)g)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    found = [clean(path, options.host, is_dry=options.dry_run) for path in sorted(journal_folder().glob("*.jsonl"))]
    if not options.dry_run:
        run_directory.remove_dead()
    folders = remove_old_folders(time.time() - options.keep_days * _DAY_S, is_dry=options.dry_run)
    if not found and not folders:
        print("no run has left anything")
    return 0 if all(found) else 1


def remove_old_folders(before: float, *, is_dry: bool = False) -> int:
    """Remove what failed jobs have left that were last written to before a time (seconds since the epoch).

    Returns:
        How many folders that were, or would be.
    """
    folders = list(old_folders(runs_folder(), journal_folder(), before))
    for folder in folders:
        print(f"{'would remove' if is_dry else 'removed'} {folder}, of failed jobs")
        if not is_dry:
            shutil.rmtree(folder)
    return len(folders)


def clean(path: Path, lost_hosts: Collection[str] = (), *, is_dry: bool = False) -> bool:
    """End what one run has left; False: something may be left.

    Args:
        path: of its journal.
        lost_hosts: hosts other than this one whose runs are known to be dead.
        is_dry: only say what would be done.
    """
    entries = read_journal(path)
    if entries is None:
        # It ended before its first line was on the disk, and so before its first job, or is being written just now.
        if not is_dry and time.time() - os.path.getmtime(path) > _BEING_WRITTEN_S:
            print(f"removed {path}, which is empty")
            path.unlink(missing_ok=True)
        return True
    name = os.path.basename(entries.run_directory)
    is_here = entries.host == socket.gethostname()
    if not is_here and entries.host not in lost_hosts:
        host = entries.host
        print(f"run {name}: of host {host}; run `hpcpool cleanup` there, or add --host {host} if it is lost")
        return True
    if is_here and entries.is_running:
        print(f"run {name}: goes on (pid {entries.pid}), left alone")
        return True
    return _clean_dead(name, entries, is_here=is_here, is_dry=is_dry)


def _clean_dead(name: str, entries: Entries, *, is_here: bool, is_dry: bool) -> bool:
    print(f"run {name}: dead, {len(entries.jobs) + len(entries.blocks)} jobs may be left")
    end_jobs(entries, lambda line: print(f"  {line}"), is_dry=is_dry)
    if is_here and name.startswith("hpcpool-") and os.path.isdir(entries.run_directory):
        print(f"  {'would remove' if is_dry else 'removed'} {entries.run_directory}")
        if not is_dry:
            run_directory.remove(entries.run_directory)
    return is_dry or not entries.is_open
