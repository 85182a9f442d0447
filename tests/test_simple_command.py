"""Simple commands: what needs no bash is told from what does, as bash itself does it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcpool import bash_process
from hpcpool.bash import BashCommand, BashResult, run_bash
from hpcpool.simple_command import _CHANGES_BASH, _OF_BASH, arguments_of, is_changed, simple_command

#: How bash reads a text does not depend on the Python.
pytestmark = pytest.mark.once
live = pytest.mark.live


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes how bash starts, whatever is set where the tests run."""
    for name in (*_CHANGES_BASH, "SSH_CLIENT", "SSH2_CLIENT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hostname", ("hostname",)),
        ("  sort -k 2\t-n \n", ("sort", "-k", "2", "-n")),
        ("\n  ls", ("ls",)),
        ("cat 'my file' ''", ("cat", "my file", "")),
        ("cat 'a\nb' x'y'z", ("cat", "a\nb", "xyz")),
        ("grep '$HOME *.txt \"' file", ("grep", '$HOME *.txt "', "file")),
        ("./run.sh --mode=fast out:1,2", ("./run.sh", "--mode=fast", "out:1,2")),
        ("cat 'Grüße'", ("cat", "Grüße")),
        ("true", ("true",)),
        ("echo a 'b c'", ("echo", "a", "b c")),
    ],
)
def test_the_arguments_of_a_simple_command(text: str, words: tuple[str, ...]):
    assert arguments_of(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "ls\n\n",
        "ls\n  ",
        "ls | wc",
        "ls; ls",
        "ls\nls",
        "ls &",
        "ls > out",
        "ls *.txt",
        "ls a?",
        "ls [ab]",
        "ls {a,b}",
        "ls ~",
        "ls $HOME",
        'ls "a b"',
        "ls a\\ b",
        "ls `pwd`",
        "ls # what",
        "! ls",
        "(ls)",
        "ls 'a",
        "A=1 ls",
        "A=1",
        "'ls' a",
        "cat Grüße",
        "cd folder",
        "[ 1 ]",
        "time ls",
        "if",
        ". file",
        ": 1",
        "printf x",
        "echo -n a",
        "echo 'a\\tb'",
        "true --help",
    ],
)
def test_what_needs_bash(text: str):
    assert arguments_of(text) is None


@pytest.mark.parametrize(
    "changes",
    [
        *({name: "x"} for name in ("BASH_ENV", "BASHOPTS", "EXECIGNORE", "SHELLOPTS")),
        *(
            {name: "() { :; }"}
            for name in ("BASH_FUNC_module%%", "BASH_FUNC_module()", "__BASH_FUNC<module>()", "module")
        ),
        *({"SSH_CLIENT": "10.0.0.1 1 22", **level} for level in ({}, {"SHLVL": "0"}, {"SHLVL": "-1"}, {"SHLVL": "x"})),
        {"SSH2_CLIENT": "10.0.0.1 1 22"},
        {"SSH_CLIENT": "10.0.0.1 1 22", "SHLVL": "999"},
    ],
)
def test_what_changes_bash_is_heeded(changes: dict[str, str]):
    assert is_changed("module", {"PATH": "/bin", **changes})


@pytest.mark.parametrize(
    "variables", [{"BASH_FUNC_modul%%": "() { :; }"}, {"module": "x"}, {"SSH_CLIENT": "10.0.0.1 1 22", "SHLVL": "1"}]
)
def test_what_does_not_change_bash_is_not_heeded(variables: dict[str, str]):
    assert not is_changed("module", {"PATH": "/bin", **variables})


@live
def test_all_that_bash_does_itself_is_known():
    told = subprocess.run(["bash", "-c", "compgen -b; compgen -k"], capture_output=True, text=True, check=True)
    assert {name for name in told.stdout.split() if arguments_of(name) is not None} <= {"echo", "true", "false"}
    assert {"cd", "if", "true"} <= _OF_BASH.intersection(told.stdout.split())


PIECES = st.one_of(
    st.sampled_from(
        [" ", "\t", "a", "-x", "k=v", "'", "'a b'", "''", "'$x\n*'", "/", ".", "~", "%", "é", "'é'", "#", "!"]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=3),
)


@live
@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=8).map("".join), min_size=40, max_size=60))
def test_words_are_split_as_bash_splits_them(texts: list[str]):
    found = {text: words for text in texts if (words := arguments_of("cat " + text)) is not None}
    script = "".join(f'set -- {text}\nprintf \'%s\\0\' "$#" "$@"\n' for text in found)
    told = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.decode()
    expected = "".join("\0".join([str(len(words) - 1), *words[1:]]) + "\0" for words in found.values())
    assert told == expected


@pytest.fixture
def without_bash(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> str:
        raise FileNotFoundError("no bash here")

    monkeypatch.setattr(bash_process, "_bash_on", none)


def bash(text: str, **options: Any) -> BashResult:
    return run_bash(BashCommand.verbatim(text, **options))


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def with_programs_of(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@live
@pytest.mark.usefixtures("without_bash")
def test_a_simple_command_needs_no_bash(tmp_path: Path):
    assert bash("echo a 'b  c'").stdout == "a b  c\n"
    assert bash("false", check=False).returncode == 1
    assert bash("cat 'my file'", cwd=_with_file(tmp_path)).stdout == "content"
    with pytest.raises(FileNotFoundError, match="no bash here"):
        bash("echo a | cat")


def _with_file(folder: Path) -> Path:
    (folder / "my file").write_text("content")
    return folder


@live
@pytest.mark.usefixtures("without_bash")
def test_the_first_program_on_the_path_is_the_one(tmp_path: Path):
    program(tmp_path, "cat", "#!/bin/sh\necho mine")
    assert bash("cat file", env=with_programs_of(tmp_path)).stdout == "mine\n"


@live
def test_echo_is_not_whatever_has_that_name(tmp_path: Path):
    """bash has its own, so that no program on the path can be meant."""
    program(tmp_path, "echo", "#!/bin/sh\nprintf mine")
    assert bash("echo a", env=with_programs_of(tmp_path)).stdout == "a\n"


@live
def test_a_function_of_the_environment_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`module` is one at many sites."""
    monkeypatch.delenv("BASH_FUNC_module%%", raising=False)
    program(tmp_path, "module", "#!/bin/sh\necho a program")
    function = {"BASH_FUNC_module%%": "() { echo a function; }"}
    assert bash("module load x", env=with_programs_of(tmp_path)).stdout == "a program\n"
    assert bash("module load x", env={**with_programs_of(tmp_path), **function}).stdout == "a function\n"


@live
def test_what_bash_is_to_read_first_is_read(tmp_path: Path):
    (tmp_path / "init").write_text("export SEEN=yes")
    assert bash("printenv SEEN", env={"BASH_ENV": str(tmp_path / "init")}).stdout == "yes\n"


@live
@pytest.mark.parametrize("level", ["0", "1", "2"])
def test_the_startup_file_of_an_ssh_session_is_read_if_bash_reads_it(level: str, tmp_path: Path):
    (tmp_path / ".bashrc").write_text("export SEEN=yes")
    changes = {"HOME": str(tmp_path), "SSH_CLIENT": "10.0.0.1 1 22", "SHLVL": level, "SEEN": "no"}
    told = subprocess.run(
        ["bash", "-c", "printenv SEEN"], env={**os.environ, **changes}, capture_output=True, text=True, check=True
    )
    assert bash("printenv SEEN", env=changes).stdout == told.stdout


@live
def test_a_program_is_called_by_the_name_that_bash_would_call_it_by(tmp_path: Path):
    program(tmp_path, "script", "#!/bin/sh\necho $0")
    env = {"PATH": f"{tmp_path}/:{os.environ['PATH']}"}
    assert bash("script", env=env).stdout == bash("script; true", env=env).stdout == f"{tmp_path}/script\n"


@live
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n  ", "  "])
def test_an_end_by_a_signal_is_told_as_bash_tells_it(end: str):
    """Behind another line bash waits for the program, and then says 137."""
    text = "sh -c 'kill -9 $$'" + end
    told = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    result = bash(text, check=False)
    assert result.returncode == told.returncode
    assert bool(result.stderr) == bool(told.stderr)


@live
def test_a_script_without_a_first_line_runs_as_bash_runs_it(tmp_path: Path):
    program(tmp_path, "bare", 'words=(a b)\necho "${words[1]} $1"')
    assert bash("bare c", env=with_programs_of(tmp_path)).stdout == "b c\n"
    assert bash("./bare c", cwd=tmp_path).stdout == "b c\n"


@live
@pytest.mark.parametrize("text", ["no-such-program", "./no-such-program a", "./folder", "./data"])
def test_what_cannot_be_started_is_told_by_bash(text: str, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "data").write_text("")
    told = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True)
    result = bash(text, cwd=tmp_path, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (told.returncode, "", told.stderr)
    assert told.returncode in (126, 127)
    assert told.stderr


@live
@pytest.mark.parametrize("pwd", ["folder", "link", "elsewhere", "nowhere", "relative", None])
@pytest.mark.parametrize("cwd", ["folder", "link", None])
def test_the_environment_is_that_which_bash_would_give(
    pwd: str | None, cwd: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("folder", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("folder")
    monkeypatch.chdir(tmp_path / "folder")
    if pwd is None:
        monkeypatch.delenv("PWD", raising=False)
    else:
        monkeypatch.setenv("PWD", "folder" if pwd == "relative" else str(tmp_path / pwd))
    monkeypatch.setenv("SHLVL", "3")
    monkeypatch.delenv("OLDPWD", raising=False)
    directory = None if cwd is None else tmp_path / cwd
    assert simple_command("env", cwd and str(directory)) is not None
    told = subprocess.run(["bash", "-c", "env"], cwd=directory, capture_output=True, text=True, check=True)
    assert _variables(bash("env", cwd=directory).stdout) == _variables(told.stdout)


def _variables(text: str | None) -> set[str]:
    # Some modules (readline) set COLUMNS and LINES where os.environ does not see them, and a changed copy lacks them.
    return {line for line in (text or "").splitlines() if not line.startswith(("_=", "COLUMNS=", "LINES="))}


@live
def test_a_pwd_that_cannot_be_looked_at_is_set_right(tmp_path: Path):
    """As on a file system that does not answer any more."""
    assert bash("printenv PWD", cwd=tmp_path, env={"PWD": "/" + "a" * 300}).stdout == f"{tmp_path}\n"


def test_an_error_of_a_signal_s_handler_is_not_taken_for_the_system_s(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> bool:
        raise TimeoutError("of a handler")

    for name in ("access", "stat"):
        with monkeypatch.context() as patch, pytest.raises(TimeoutError, match="of a handler"):
            patch.setattr(os, name, interrupted)
            simple_command("env", None)


@live
def test_a_directory_that_has_gone_is_left_to_bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert simple_command("true", None) is None
    assert bash("true").returncode == 0
