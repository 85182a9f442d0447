from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcpool.processes.journal import Journal, identity_of, journal_path, read_journal

CONFIG = {"node_pools": [{"name": "a"}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "run@here.jsonl"


@pytest.fixture
def journal(path: Path) -> Journal:
    return Journal(path, "/tmp/hpcpool-x", CONFIG)


def test_a_run_without_jobs_has_no_journal(journal, path):
    journal.close()
    assert not path.parent.exists()


def test_a_job_is_noted_before_it_is_asked_for_and_again_with_its_id(journal, path):
    journal.submitting("a", "a-0")
    entries = read_journal(path)
    assert (entries.jobs, entries.blocks) == ({}, {"a-0": "a"})
    journal.submitted("a-0", "17")
    entries = read_journal(path)
    assert (entries.jobs, entries.blocks) == ({"17": "a"}, {})
    assert (entries.run_directory, entries.pid, entries.config) == ("/tmp/hpcpool-x", os.getpid(), CONFIG)
    journal.close()
    assert path.exists(), "a job is left"


def test_only_its_owner_can_read_it(journal, path):
    journal.submitting("a", "a-0")
    journal.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_file_goes_when_all_jobs_are_over(journal, path):
    for name in ("a-0", "a-1"):
        journal.submitting("a", name)
    journal.submitted("a-0", "17")
    journal.refused("a-1")
    journal.ended("17")
    assert read_journal(path).jobs == {}
    journal.close()
    assert not path.exists()


def test_a_line_that_was_cut_off_takes_nothing_else_along(journal, path):
    journal.submitting("a", "a-0")
    journal.submitted("a-0", "17")
    journal.close()
    with path.open("a") as file:
        file.write('{"ended": "1')
    assert read_journal(path).jobs == {"17": "a"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]\n"])
def test_a_file_without_a_first_line_is_none(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    assert read_journal(path) is None
    assert read_journal(path.with_name("gone")) is None


def test_who_writes_it_is_seen_to_live_and_to_have_died(journal, path):
    journal.submitting("a", "a-0")
    journal.close()
    entries = read_journal(path)
    assert entries.is_running
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    entries.pid, entries.identity = child.pid, identity_of(child.pid)
    assert entries.is_running
    child.communicate()
    assert not entries.is_running


def test_another_process_with_the_same_pid_is_not_taken_for_it(journal, path):
    journal.submitting("a", "a-0")
    journal.close()
    entries = read_journal(path)
    entries.identity = identity_of(1)
    assert not entries.is_running


def test_a_journal_that_cannot_be_written_costs_one_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    journal = Journal(tmp_path / "file" / "x.jsonl", "/tmp/hpcpool-x", CONFIG)
    journal.submitting("a", "a-0")
    journal.submitted("a-0", "17")
    journal.close()
    assert caplog.text.count("must be cancelled by hand") == 1


def test_hosts_that_share_a_home_have_journals_of_their_own(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr("socket.gethostname", lambda: "login3")
    assert journal_path("/tmp/hpcpool-abc") == Path("/home/ada/.hpcpool/journal/hpcpool-abc@login3.jsonl")
