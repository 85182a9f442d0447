from __future__ import annotations

import os
import time

import pytest

from hpcpool.processes.journal import journal_folder
from hpcpool.tools.main import main
from hpcpool.wire.version import VERSION


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_without_a_command_it_says_which_there_are(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_it_says_its_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert VERSION in capsys.readouterr().out


def test_where_no_run_has_left_anything_cleanup_says_so(capsys):
    assert main(["cleanup", "--dry-run"]) == 0
    assert capsys.readouterr().out == "no run has left anything\n"


def test_an_empty_journal_goes_unless_it_may_be_one_that_is_being_written(capsys):
    journal_folder().mkdir(parents=True)
    journal = journal_folder() / "hpcpool-x@here.jsonl"
    journal.touch()
    assert main(["cleanup", "--dry-run"]) == 0
    assert journal.exists()
    os.utime(journal, (time.time() - 3600,) * 2)
    assert main(["cleanup", "--dry-run"]) == 0
    assert journal.exists()
    journal_is_fresh = journal.with_name("hpcpool-y@here.jsonl")
    journal_is_fresh.touch()
    assert main(["cleanup"]) == 0
    assert (journal.exists(), journal_is_fresh.exists()) == (False, True)
    assert "empty" in capsys.readouterr().out


def test_what_failed_jobs_have_left_goes_when_it_is_old(capsys, home):
    folder = home / ".hpcpool" / "runs" / "hpcpool-x"
    folder.mkdir(parents=True)
    assert main(["cleanup"]) == 0
    assert folder.exists()
    os.utime(folder, (time.time() - 31 * 86400,) * 2)
    assert main(["cleanup", "--keep-days", "32"]) == 0
    assert main(["cleanup", "--dry-run"]) == 0
    assert folder.exists()
    assert main(["cleanup"]) == 0
    assert not folder.exists()
    assert f"would remove {folder}" in capsys.readouterr().out
