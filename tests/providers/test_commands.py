from __future__ import annotations

import stat
import sys

import pytest

from hpcpool.providers.commands import CommandResult, LocalRunner, Runner

RUNNER: Runner = LocalRunner()


@pytest.mark.parametrize(
    ("code", "was_not_started", "is_cut_off"),
    [(0, False, False), (1, False, False), (-9, False, True), (None, False, True), (None, True, False)],
)
def test_a_command_that_did_not_come_to_its_end_may_have_done_its_work(code, was_not_started, is_cut_off):
    assert CommandResult(("x",), code, "", "", was_not_started).is_cut_off is is_cut_off


@pytest.mark.parametrize(
    ("stdout", "stderr", "words"),
    [("out", " a\n b\n", "a b"), ("out\n", "\n", "out"), ("", "", "x ended with code 3 and said nothing")],
)
def test_the_words_of_a_command_are_one_line(stdout, stderr, words):
    assert CommandResult(("x",), 3, stdout, stderr).words == words


def test_a_command_that_is_not_there_was_not_started():
    result = RUNNER.run(["no-such-command-here"], timeout_s=5)
    assert (result.code, result.was_not_started) == (None, True)
    assert result.words == "no-such-command-here cannot be run: No such file or directory"


@pytest.mark.live
def test_a_command_that_does_not_end_is_given_up():
    result = RUNNER.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)
    assert (result.code, result.is_cut_off) == (None, True)
    assert "did not answer within 0.2 s" in result.words


@pytest.mark.live
def test_a_command_runs_in_the_c_locale_and_its_output_is_text_whatever_it_is(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    code = "import os, sys; sys.stdout.buffer.write(os.environ['LC_ALL'].encode() + b' \\xff'); sys.exit(3)"
    result = RUNNER.run([sys.executable, "-c", code], timeout_s=20)
    assert (result.code, result.stdout) == (3, "C \N{REPLACEMENT CHARACTER}")


def test_files_are_for_the_user_alone(tmp_path):
    folder = tmp_path / "a" / "b"
    RUNNER.write_files(str(folder), {"x": b"1"})
    RUNNER.write_files(str(folder), {"x": b"2\n3"})
    assert stat.S_IMODE((folder / "x").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert RUNNER.tail_of(str(folder / "x"), 2) == "\n3"
    assert RUNNER.tail_of(str(folder / "y"), 2) == ""
    RUNNER.remove_folder(str(folder))
    RUNNER.remove_folder(str(folder))
    assert not folder.exists()
