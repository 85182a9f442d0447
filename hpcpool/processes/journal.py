"""The journal of a run: which jobs it has asked batch systems for, kept where it outlives the run.

A job goes on when the process that asked for it is killed, or its login node dies. So each one is noted before it is
asked for, in `~/.hpcpool/journal`, one file a run, one JSON object a line, and the file goes when all of them are over.
What is left there is what `hpcpool cleanup` and the client of a dead interchange cancel.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

log = logging.getLogger(__name__)

#: In the home directory: it is there on all login nodes, and survives them.
_FOLDER = os.path.join(".hpcpool", "journal")


def journal_folder() -> Path:
    """Return where the journals of this user are."""
    return Path(os.path.expanduser("~"), _FOLDER)


def journal_path(run_directory: str) -> Path:
    """Return where the journal of a run is; the host is in its name, as many hosts may share the folder."""
    return journal_folder() / f"{os.path.basename(run_directory)}@{socket.gethostname()}.jsonl"


def identity_of(pid: int) -> str:
    """Return what tells a process from a later one with the same pid; empty if it is gone or the system does not tell.

    The boot and the clock tick at which it started: unlike a time of day they do not change when the clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    # proc(5): the state is field 3, the start time field 22.
    return "" if fields[0] in "ZX" else f"{boot}/{fields[19]}"


class Journal:
    """Written by the interchange; its methods may be called from any thread. Nothing is written before the first job.

    Args:
        path: the file (see `journal_path`).
        run_directory: of the run.
        config: of the run, as plain data.
    """

    def __init__(self, path: Path, run_directory: str, config: Mapping[str, object]) -> None:
        self._path = path
        self._run_directory = run_directory
        self._config = config
        self._lock = threading.Lock()
        self._file: int | None = None
        self._is_failing = False
        #: Blocks that are being submitted, and jobs that are not known to be over.
        self._open: set[str] = set()

    def submitting(self, pool: str, block: str) -> None:
        """A job for this block is about to be asked for."""
        self._note({"submitting": block, "pool": pool}, opens=f"block {block}")

    def submitted(self, block: str, job: str) -> None:
        """The batch system has given it this id."""
        self._note({"submitted": block, "job": job}, opens=f"job {job}", closes=f"block {block}")

    def refused(self, block: str) -> None:
        """There is no job for this block."""
        self._note({"refused": block}, closes=f"block {block}")

    def ended(self, job: str) -> None:
        """A job is over."""
        self._note({"ended": job}, closes=f"job {job}")

    def close(self) -> None:
        """Write no more; the file goes if no job is left."""
        with self._lock:
            if self._file is None:
                return
            os.close(self._file)
            self._file = None
            if not self._open:
                self._path.unlink(missing_ok=True)

    def _note(self, entry: dict[str, Any], *, opens: str = "", closes: str = "") -> None:
        with self._lock:
            self._open.discard(closes)
            if opens:
                self._open.add(opens)
            try:
                if self._file is None:
                    self._file = self._start()
                self._write(self._file, entry | {"at": time.time()})
            except OSError as error:
                self._warn(error)

    def _start(self) -> int:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._write(
            file,
            {
                "run": self._run_directory,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "identity": identity_of(os.getpid()),
                "config": self._config,
            },
        )
        # The name must be on the disk as well as the content.
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return file

    def _write(self, file: int, entry: dict[str, Any]) -> None:
        os.write(file, json.dumps(entry).encode() + b"\n")
        os.fsync(file)

    def _warn(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.warning(
                "%s cannot be written (%s): should this machine die, its jobs must be cancelled by hand",
                self._path,
                error,
            )


class Entries(msgspec.Struct):
    """What a journal tells."""

    path: Path
    run_directory: str
    host: str
    pid: int
    identity: str
    config: Mapping[str, object]
    #: The node pool of each job that is not known to be over, by the job's id.
    jobs: dict[str, str] = {}
    #: The node pool of each block of which it is not known whether there is a job.
    blocks: dict[str, str] = {}

    @property
    def is_open(self) -> bool:
        """True while there may be jobs."""
        return bool(self.jobs or self.blocks)

    def note_ended(self, job: str) -> None:
        """Write that a job is over."""
        with self.path.open("a", encoding="utf-8") as file:
            # A line that was cut off must not take this one along.
            file.write("\n" + json.dumps({"ended": job, "at": time.time()}) + "\n")

    @property
    def is_running(self) -> bool:
        """True while the interchange that writes it lives; only known on its own host."""
        if not self.identity:
            return _exists(self.pid)
        return identity_of(self.pid) == self.identity


def read_journal(path: Path) -> Entries | None:
    """Return what a journal tells; None if it is gone, or its first line was never written."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return None
    entries: Entries | None = None
    pools: dict[str, str] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # cut off: the process died while it wrote
            continue
        if not isinstance(entry, dict):
            continue
        if "run" in entry:
            head = (entry[name] for name in ("run", "host", "pid", "identity", "config"))
            entries = Entries(path, *head)
        elif entries is not None:
            _take_in(entries, entry, pools)
    return entries


def _take_in(entries: Entries, entry: dict[str, Any], pools: dict[str, str]) -> None:
    match entry:
        case {"submitting": block, "pool": pool}:
            pools[block] = entries.blocks[block] = pool
        case {"submitted": block, "job": job}:
            entries.blocks.pop(block, None)
            entries.jobs[job] = pools.get(block, "")
        case {"refused": block}:
            entries.blocks.pop(block, None)
        case {"ended": job}:
            entries.jobs.pop(job, None)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
