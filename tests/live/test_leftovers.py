"""However a run ends, its jobs end: what its interchange cannot cancel its client does, `hpcpool cleanup` the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool import BrokenPool, Config, HPCPoolExecutor
from hpcpool.processes.journal import Journal, journal_folder, read_journal
from tests.live.folder_system import FolderSystem, folder_system
from tests.live.processes import PATIENCE_S, Pool, executor, until
from tests.live.scripts import Script, script, until_gone

pytestmark = [pytest.mark.live, pytest.mark.once]

PROGRAM = """
import sys
from hpcpool import Config, HPCPoolExecutor
from tests.live.folder_system import FolderSystem
from tests.live.folder_system import FolderProvider
from hpcpool import NodePool
with HPCPoolExecutor(Config(NodePool(FolderProvider(sys.argv[1]), init_blocks=2, max_blocks=2))) as pool:
    call = pool.submit(abs, 1)
    print("ready", flush=True)
    call.result()
    {rest}
"""


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FolderSystem]:
    with folder_system(monkeypatch, tmp_path) as system:
        yield system


def journals() -> list[Path]:
    return list(journal_folder().glob("*"))


def jobs_in_journal() -> int:
    entries = [read_journal(path) for path in journals()]
    return sum(len(entry.jobs) for entry in entries if entry is not None)


def cleanup(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcpool.tools.main", "cleanup", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def a_program_with_two_jobs(system: FolderSystem, path: Path, rest: str = "pass") -> Iterator[Script]:
    return script(path / "program.py", PROGRAM.format(rest=rest), system.folder)


def test_a_run_that_ends_well_leaves_no_journal(system):
    with executor(Config(system.pool())):
        assert len(journals()) == 1
        assert journals()[0].stat().st_mode & 0o777 == 0o600
    assert journals() == []


@pytest.mark.parametrize("holds", [True, False], ids=["queued", "running"])
def test_the_jobs_of_a_killed_client_are_cancelled_by_its_interchange(system, tmp_path, holds):
    if holds:
        system.behave("hold", "Priority")
    with a_program_with_two_jobs(system, tmp_path, "import time; time.sleep(600)") as program:
        program.wait_for("ready")
        until(lambda: jobs_in_journal() == 2, "two jobs in the journal")
        os.kill(program.pid, signal.SIGKILL)
        until(lambda: not system.alive, "the end of its jobs")
    until(lambda: journals() == [], "the end of its journal")


def test_the_jobs_of_a_killed_interchange_are_cancelled_by_the_client(system):
    system.behave("hold", "Priority")
    with HPCPoolExecutor(Config(system.pool(init_blocks=2, max_blocks=2))) as pool:
        call = pool.submit(abs, 1)
        until(lambda: jobs_in_journal() == 2, "two jobs in the journal")
        Pool.below(os.getpid()).interchange.kill()
        assert isinstance(call.exception(PATIENCE_S), BrokenPool)
    assert system.alive == []
    assert journals() == []


def kill_all(system: FolderSystem, program: Script) -> int:
    """Kill client and interchange at once; return the interchange's pid."""
    until(lambda: jobs_in_journal() == 2, "two jobs in the journal")
    interchange = Pool.below(program.pid).interchange
    os.kill(interchange.pid, signal.SIGSTOP)
    os.kill(program.pid, signal.SIGKILL)
    program.process.wait()
    os.kill(interchange.pid, signal.SIGKILL)
    until_gone(interchange.pid)
    return interchange.pid


def test_cleanup_cancels_what_is_left_when_all_were_killed(system, tmp_path):
    system.behave("hold", "Priority")
    with a_program_with_two_jobs(system, tmp_path) as program:
        program.wait_for("ready")
        kill_all(system, program)
    dry = cleanup("--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "job 1 would be cancelled: pending (Priority)" in dry.stdout
    assert len(system.alive) == 2
    done = cleanup()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cancelled: job 1, job 2" in done.stdout
    assert system.alive == []
    assert journals() == []
    assert "no run has left anything" in cleanup().stdout


def test_cleanup_removes_the_run_directory_of_a_dead_run_but_nothing_else(system, tmp_path):
    for name in ("hpcpool-dead", "precious"):
        directory = tmp_path / name
        directory.mkdir()
        journal = Journal(journal_folder() / f"{name}@here.jsonl", str(directory), Config().to_dict())
        journal.submitting("default", "default-0")
        journal.submitted("default-0", "17")
        journal.close()
        entries = read_journal(journals()[0])
        entries.note_ended("17")
        text = entries.path.read_text()
        entries.path.write_text(text.replace(entries.identity, "of a process that has died"))
        assert cleanup("--dry-run").returncode == 0
        assert directory.exists()
        assert cleanup().returncode == 0
        assert directory.exists() == (name == "precious")
        assert journals() == []


def test_cleanup_leaves_runs_alone_that_go_on(system):
    with executor(Config(system.pool())) as pool:
        done = cleanup()
        assert done.returncode == 0
        assert "goes on (pid" in done.stdout
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1


def test_cleanup_says_what_it_could_not_do_and_does_it_the_next_time(system, tmp_path):
    system.behave("hold", "Priority")
    with a_program_with_two_jobs(system, tmp_path) as program:
        program.wait_for("ready")
        kill_all(system, program)
    (journal,) = journals()
    system.folder.rename(tmp_path / "away")
    try:
        assert cleanup("--dry-run").returncode == 0
    finally:
        (tmp_path / "away").rename(system.folder)
    journal.write_text(journal.read_text().replace('"kind": "folders"', '"kind": "nowhere"'))
    failed = cleanup()
    assert failed.returncode == 1
    assert "no provider of kind 'nowhere'" in failed.stdout
    journal.write_text(journal.read_text().replace('"kind": "nowhere"', '"kind": "folders"'))
    assert cleanup().returncode == 0
    assert (system.alive, journals()) == ([], [])


def test_runs_of_another_host_are_left_to_it_unless_it_is_lost(system, tmp_path):
    system.behave("hold", "Priority")
    with a_program_with_two_jobs(system, tmp_path) as program:
        program.wait_for("ready")
        kill_all(system, program)
    (journal,) = journals()
    host = read_journal(journal).host
    journal.write_text(journal.read_text().replace(f'"host": "{host}"', '"host": "login9"'))
    assert "of host login9; run `hpcpool cleanup` there" in cleanup().stdout
    assert len(system.alive) == 2
    assert cleanup("--host", "login9").returncode == 0
    assert (system.alive, journals()) == ([], [])


def test_a_job_that_was_being_submitted_when_all_died_is_told_of(system, tmp_path):
    system.behave("hold", "Priority")
    with a_program_with_two_jobs(system, tmp_path) as program:
        program.wait_for("ready")
        kill_all(system, program)
    (journal,) = journals()
    with journal.open("a") as file:
        file.write('{"submitting": "default-7", "pool": "default", "at": 0}\n')
    done = cleanup()
    assert done.returncode == 1
    assert "block default-7: it was being submitted" in done.stdout
    assert system.alive == []
    journal.unlink()
