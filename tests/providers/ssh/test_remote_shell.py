from __future__ import annotations

import shutil
import subprocess

import pytest

from hpcpool.providers.ssh.remote_shell import command_line, own_output, result_of

ARGV = ("sbatch", "x")


def result(code: int, stderr: str):
    return result_of(ARGV, code, "", stderr, "ada@login")


@pytest.mark.parametrize(
    "said",
    [
        "timeout: failed to run command 'sbatch': No such file or directory\n",
        "timeout: failed to run command \u2018sbatch\u2019: No such file or directory\n",
        "sh: 1: sbatch: No such file or directory\n",
        "sh: line 1: sbatch: No such file or directory\n",
    ],
)
def test_a_command_that_could_not_be_run_is_told_from_one_that_failed(said):
    done = result(127, said)
    assert done.code is None
    assert done.stderr == "sbatch cannot be run on ada@login: No such file or directory"


def test_a_command_may_end_with_the_codes_that_a_shell_uses():
    done = result(127, "sbatch: error: something\nelse\n")
    assert (done.code, done.stderr) == (127, "sbatch: error: something\nelse\n")


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (3, 3), (128, 128), (137, -9), (143, -15), (255, 255)])
def test_a_code_above_128_is_a_signal(code, expected):
    assert result(code, "").code == expected


def test_only_what_follows_the_beginning_is_the_commands():
    assert own_output("motd\n--hpcpool-begin--\nanswer\n") == "answer\n"
    assert own_output("sh is not there\n") == "sh is not there\n"


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "tcsh", "zsh", "fish"])
def test_any_shell_passes_the_arguments_on(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    words = ("a b", "it's", '"', "$HOME", "`id`", "*", "", "é", "; false", "!x", "~")
    line = command_line(("printf", "<%s>", *words), limit_s=10)
    done = subprocess.run((shell, "-c", line), capture_output=True, text=True, timeout=20, check=True)
    assert own_output(done.stdout) == "".join(f"<{word}>" for word in words)


def test_a_machine_without_timeout_runs_the_command_all_the_same(tmp_path):
    (tmp_path / "sh").symlink_to(shutil.which("sh") or "")
    (tmp_path / "echo-it").write_text("#!/bin/sh\necho $1\n")
    (tmp_path / "echo-it").chmod(0o755)
    line = command_line(("echo-it", "hello"), limit_s=10)
    done = subprocess.run(
        (str(tmp_path / "sh"), "-c", line),
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert own_output(done.stdout) == "hello\n"
