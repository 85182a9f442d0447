"""Bash calls: templates and their checks without a process; everything else with a real bash and real kills."""

from __future__ import annotations

import errno
import os
import pickle
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcpool import bash as bash_module
from hpcpool.bash import BashCommand, BashResult, run_bash
from hpcpool.errors import BashError, BashTimeout, MissingOutputs, TaskTimeout
from tests.conftest import open_descriptors

live = pytest.mark.live

#: Where the limits live that some tests shorten.
PROCESS_MODULE = sys.modules[bash_module.Running.__module__]

#: A timeout within which a script has most likely started; a test that needs more than that uses `ready`.
TIMEOUT_S = 1.0

OPTIONS = ("stdout", "stderr", "cwd", "env", "timeout", "check", "inputs", "outputs")

NASTY = [
    "",
    " ",
    "two words",
    "it's",
    'say "hi"',
    "$(touch pwned)",
    "`touch pwned`",
    "${HOME}",
    "a\nb\n",
    "-n",
    "--help",
    "; touch pwned; #",
    "* ? [a-z] ~",
    "\\ \\n \\",
    "!history",
    "Grüße, 世界 🎉",
    "{braces} {}",
    "'\"'\"'",
    "\t\x01\x7f",
]


def call(command: Any, **arguments: Any) -> BashCommand:
    """What `ex.bash(command, ...)` makes of its keywords."""
    options = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
    return BashCommand.of(command, **options, fields=arguments)


def bash(command: Any, **arguments: Any) -> BashResult:
    return run_bash(call(command, **arguments))


def text(template: str, **fields: Any) -> str | tuple[str, ...]:
    return call(template, **fields).as_run()


def has_ended(pid: int, within_s: float = 30.0) -> bool:
    """Whether a process ends in time; woken by its end."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], within_s)[0])
    finally:
        os.close(fd)


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a script that makes a file `ready` when it has started all: then its time is over."""
    folder = tmp_path / "folder"
    folder.mkdir()
    is_ready = (folder / "ready").exists
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() if is_ready() else 0.0, perf_counter=time.perf_counter)
    monkeypatch.setattr(PROCESS_MODULE, "time", clock)
    return folder


def pids_in(output: str) -> list[int]:
    return [int(word) for word in output.split()]


# Templates


def test_a_field_becomes_one_quoted_word():
    assert text("cat {name}", name="my file") == "cat 'my file'"


def test_a_plain_value_needs_no_quotes():
    assert text("head -n {count} {file}", count=3, file=Path("a.txt")) == "head -n 3 a.txt"


def test_a_list_becomes_one_word_for_each_item():
    assert text("cat {files}", files=["a b", Path("c"), ("d", ["e f"])]) == "cat 'a b' c d 'e f'"


def test_an_empty_list_becomes_nothing():
    assert text("ls {files}.", files=[]) == "ls ."


def test_a_raw_field_goes_in_as_it_is():
    assert text("ls {flags:raw} | {filter:raw}", flags=["-l", "-a"], filter="wc -l") == "ls -l -a | wc -l"


def test_formats_and_conversions_come_before_quoting():
    assert (
        text("{x:.3f} {n:>4} {s!r} {xs:02d}", x=1 / 3, n=7, s="a", xs=[1, 2]) == "0.333 '   7' ''\"'\"'a'\"'\"'' 01 02"
    )


def test_attributes_and_items_can_be_looked_up():
    record = SimpleNamespace(path="a b")
    assert text("{r.path} {f[0]} {d[key]}", r=record, f=["x y"], d={"key": 1}) == "'a b' 'x y' 1"


def test_a_format_can_have_fields():
    assert text("{x:.{digits}f}", x=2.0, digits=1) == "2.0"
    with pytest.raises(TypeError, match="digits"):
        call("{x:.{digits}f}", x=2.0)


def test_doubled_braces_are_for_bash():
    assert text("awk '{{print $1}}' {f}; echo ${{HOME}}", f="x") == "awk '{print $1}' x; echo ${HOME}"


def test_bytes_are_names_of_files():
    assert text("cat {name}", name=b"a b") == "cat 'a b'"


def test_the_text_of_a_verbatim_command_is_left_alone():
    command = "for f in {a,b}; do echo ${f}; done; awk '{print}' {x}"
    assert BashCommand.verbatim(command, timeout=3).as_run() == command


def test_an_error_in_a_value_names_its_field():
    with pytest.raises(ValueError, match="format code") as caught:
        text("{x:.3f}", x="text")
    assert "the field {x}" in caught.value.__notes__[0]


# Fields inside quotes


@pytest.mark.parametrize(
    "template",
    [
        "echo '{x}'",
        'echo "{x}"',
        "echo \"a $(echo '{x}') b\"",
        "echo $'{x}'",
        "echo ${x}",
        "echo \\{x}",
        "cat <<END\n{x}\nEND",
        "cat <<-'END' > out\n\t{x}\n\tEND\n",
        "# {x}\n",
        "true # it's {x}",
        "echo $(( {x} + 1 ))",
        "(( n = (1 + {x}) ))",
        "echo 'a' \"b\" 'c {x}'",
    ],
)
def test_a_value_that_needs_quotes_is_refused_where_quotes_do_not_work(template: str):
    assert "42" in text(template, x=42)
    with pytest.raises(ValueError, match=r"\{x:raw\}"):
        text(template, x="$(reboot)")
    assert "$(reboot)" in text(template.replace("{x}", "{x:raw}"), x="$(reboot)")


@live
@pytest.mark.parametrize(
    "template",
    [
        "printf %s {x}",
        "printf '%s' {x}",
        'printf "%s" "$(printf %s {x}; printf E)" | sed \'$ s/E$//\'',
        "echo 'a' > /dev/null; printf %s {x}",
        "echo \"it's \\\" $(echo 'a')\" > /dev/null; printf %s {x}",
        "# it's a comment\nprintf %s {x}",
        "cat > /dev/null <<END\nit's\nEND\nprintf %s {x}",
        "cat > /dev/null <<-'END' <<\"TWO\"\n\tit's\n\tEND\n\"\nTWO\nprintf %s {x}",
        "n=$(( (1 << 2) + 3 )); (printf %s {x})",
        "cat <<< 'a' > /dev/null; printf %s {x}",
        "echo a#'b' $# ${{#n}} > /dev/null; printf %s {x}",
        "printf %s `printf a`{x} | tail -c +2",
        "echo \\' \\\" > /dev/null; printf %s {x}",
        "echo $'it\\'s' > /dev/null; printf %s {x}",
        "case a in b) ;; *) printf %s {x};; esac",
        "f() {{ printf %s {x}; }}; f",
    ],
)
def test_a_value_arrives_whole_wherever_bash_reads_a_word(template: str, tmp_path: Path):
    value = 'it\'s "$(touch pwned)" `touch pwned` $HOME\n\\end'
    assert bash(template, x=value, cwd=tmp_path).stdout == value
    assert list(tmp_path.iterdir()) == []


@live
@pytest.mark.parametrize("value", NASTY)
def test_a_nasty_value_arrives_as_it_is(value: str, tmp_path: Path):
    assert bash("printf '%s.' {x} {xs}", x=value, xs=[value], cwd=tmp_path).stdout == f"{value}.{value}."
    assert bash(["printf", "%s.", value], cwd=tmp_path).stdout == f"{value}."
    assert list(tmp_path.iterdir()) == []


@live
@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@example("'")
def test_any_text_arrives_as_it_is(value: str):
    assert bash("printf %s {x}", x=value).stdout == value


@live
def test_a_file_whose_name_is_not_text_can_be_named(tmp_path: Path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe"
    Path(os.fsdecode(name)).write_text("found")
    assert bash("cat {name}", name=os.fsdecode(name)).stdout == "found"
    assert bash(["cat", name]).stdout == "found"


# Checks at the call


@pytest.mark.parametrize(
    ("template", "fields", "message"),
    [
        ("cat {a} {b}", {"a": 1}, "no value for 'b'"),
        ("cat {a}", {"a": 1, "b": 2}, "does not use 'b'"),
        ("cat", {"b": 2}, "does not use 'b'"),
        ("cat {a}", {"b": 2}, "no value for 'a'.*does not use 'b'"),
        ("sleep {timeout}", {}, "option of that name"),
        ("cat {files[0].name}", {}, "no value for 'files'"),
    ],
)
def test_a_missing_or_extra_field_is_an_error_at_the_call(template: str, fields: dict[str, int], message: str):
    with pytest.raises(TypeError, match=message):
        call(template, **fields)


@pytest.mark.parametrize(
    "template",
    ["cat {}", "cat {0}", "cat {", "cat }", "{a", "awk '{print $1}'", "echo ${1:-x}", "{a!x}", "{.a}", "{[0]}", "{a[}"],
)
def test_a_malformed_template_is_an_error_that_tells_to_double_the_braces(template: str):
    with pytest.raises(ValueError, match="doubled"):
        call(template, a=1)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (b"true", TypeError),
        (None, TypeError),
        (Path("prog"), TypeError),
        (Future(), TypeError),
        ({"a"}, TypeError),
        ([], ValueError),
        ((), ValueError),
        ("a\0b", ValueError),
    ],
)
def test_what_is_no_command_is_refused_at_the_call(command: object, error: type[Exception]):
    if command == "a\0b":
        with pytest.raises(error):
            call("a\0b {x}", x=1)
        return
    with pytest.raises(error, match="command|arguments"):
        call(command)


def test_a_list_has_no_fields():
    with pytest.raises(TypeError, match="put the values into the list"):
        call(["echo", "{x}"], x=1)
    assert call(["echo", "{x}"]).as_run() == ("echo", "{x}")


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("stdout", ("f", "r"), ValueError),
        ("stderr", ("f", "rw"), ValueError),
        ("stdout", ("f", ""), ValueError),
        ("stdout", ("f",), TypeError),
        ("stdout", ("f", 3), TypeError),
        ("stderr", -1, TypeError),
        ("stdout", b"f", TypeError),
        ("cwd", 3, TypeError),
        ("env", "A=1", TypeError),
        ("env", [("A", "1")], TypeError),
        ("env", {1: "a"}, TypeError),
        ("env", {"A=B": "a"}, ValueError),
        ("timeout", "3", TypeError),
        ("timeout", True, TypeError),
        ("timeout", 0, ValueError),
        ("timeout", -1.0, ValueError),
        ("timeout", float("nan"), ValueError),
        ("timeout", float("inf"), ValueError),
        ("inputs", 3, TypeError),
        ("outputs", b"f", TypeError),
    ],
)
def test_a_wrong_option_is_an_error_at_the_call_that_names_it(option: str, value: object, error: type[Exception]):
    with pytest.raises(error, match=r"bash\(\): .*" + ("variable|name" if option == "env" else option)):
        call("true", **{option: value})


def test_futures_are_left_where_they_are():
    future: Future[Any] = Future()
    made = call(
        "cat {x} {y}",
        x=future,
        y=[future],
        stdout=(future, "a"),
        stderr=future,
        cwd=future,
        env={"A": future},
        inputs=future,
        outputs=["a", future],
    )
    assert made.fields == {"x": future, "y": [future]}
    assert made.stdout == (future, "a")
    assert made.stderr is made.cwd is future
    assert made.env == {"A": future}
    assert made.inputs == (future,)
    assert made.outputs == ("a", future)
    assert call(["echo", future, [future]]).command == ("echo", future, [future])
    assert call("true", env=future, stdout=("f", future)).env is future


def test_a_call_does_not_change_with_what_it_was_made_from():
    files, environment, arguments = {"x": "1"}, {"A": "1"}, ["echo", "a"]
    of_fields = BashCommand.of("{x}", fields=files, env=environment)
    of_list = BashCommand.of(arguments)
    files["x"] = environment["A"] = arguments[1] = "changed"
    assert (of_fields.fields, of_fields.env, of_list.command) == ({"x": "1"}, {"A": "1"}, ("echo", "a"))


def test_a_future_result_of_the_wrong_kind_is_an_error_when_the_call_runs():
    made = call("true")
    for option, value in [("stdout", 3), ("stdout", ("f", "r")), ("cwd", 3), ("env", 3), ("inputs", (None,))]:
        changed = BashCommand(**{**vars(made), option: value})
        with pytest.raises((TypeError, ValueError), match=r"bash\(\)"):
            run_bash(changed)


# Results


@live
def test_a_result_tells_what_happened():
    result = bash("echo {x}; echo problem >&2; exit 3", x="a b", check=False)
    assert result.command == "echo 'a b'; echo problem >&2; exit 3"
    assert (result.returncode, result.stdout, result.stderr) == (3, "a b\n", "problem\n")
    assert (result.stdout_path, result.stderr_path) == (None, None)
    assert (result.stdout_truncated, result.stderr_truncated) == (False, False)
    assert result.outputs == ()
    assert "returncode=3" in repr(result)


@live
def test_wall_and_cpu_time_are_those_of_the_command():
    busy = bash("time for ((i = 0; i < 100000; i++)); do :; done")
    assert 0 < busy.cpu_s <= busy.wall_s * 1.5
    child = bash("bash -c 'for ((i = 0; i < 100000; i++)); do :; done'; true")
    assert child.cpu_s > busy.cpu_s / 10  # a waited-for grandchild counts
    asleep = bash("sleep 0.3")
    assert asleep.wall_s >= 0.3
    assert asleep.cpu_s < 0.2


@live
def test_a_result_as_a_field_is_what_it_printed(tmp_path: Path):
    first = bash("printf 'a b\n\n\n'")
    assert str(first) == "a b"
    assert bash("printf %s {x}", x=first).stdout == "a b"
    to_file = bash("echo data", stdout="my file.txt", cwd=tmp_path)
    assert str(to_file) == str(tmp_path / "my file.txt")
    assert bash("cat {x}", x=to_file).stdout == "data\n"
    assert bash(["cat", to_file]).stdout == "data\n"


@live
def test_a_list_runs_without_a_shell(tmp_path: Path):
    result = bash(["printf", "%s|", "$HOME", "*", 3, Path("p"), ["a", ("b",)]], cwd=tmp_path)
    assert result.stdout == "$HOME|*|3|p|a|b|"
    assert result.command == ("printf", "%s|", "$HOME", "*", "3", "p", "a", "b")


@live
def test_a_future_of_an_empty_list_is_no_command():
    with pytest.raises(ValueError, match="no program"):
        bash([[]])


@live
def test_output_that_is_not_text_is_replaced():
    assert bash(r"printf 'a\xffb\r\n'").stdout == "a\ufffdb\r\n"


@live
def test_stdin_is_empty():
    assert bash("cat; echo end").stdout == "end\n"


@live
def test_a_program_missing_from_a_list_is_named():
    with pytest.raises(FileNotFoundError, match="no such program") as caught:
        bash(["no-such-program-anywhere", "x"])
    assert caught.value.filename == "no-such-program-anywhere"
    assert caught.value.errno == errno.ENOENT


@live
def test_a_command_that_is_too_long_says_so():
    with pytest.raises(OSError, match="too long") as caught:
        bash("true {x}", x="x" * 5_000_000)
    assert caught.value.errno == errno.E2BIG


@live
def test_a_missing_bash_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PROCESS_MODULE.os.path, "isfile", lambda path: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no bash"):
        bash("true; true")


@live
def test_bash_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = tmp_path / "bash"
    own.write_text('#!/bin/sh\necho "my bash ran $2"\n')
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert bash("something").stdout == "my bash ran something\n"


# Large output


@live
def test_of_large_output_the_end_is_kept_in_bounded_memory():
    limit = PROCESS_MODULE.CAPTURE_LIMIT_BYTES
    tracemalloc.start()
    try:
        result = bash("head -c 150000000 /dev/zero; echo; echo the end; echo short >&2")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.stdout is not None
    assert len(result.stdout) == limit
    assert result.stdout.endswith("\nthe end\n")
    assert (result.stdout_truncated, result.stderr_truncated) == (True, False)
    assert result.stderr == "short\n"
    assert peak < 3 * limit


@live
def test_a_cut_does_not_leave_half_a_character(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PROCESS_MODULE, "CAPTURE_LIMIT_BYTES", 10)
    result = bash("printf 'xyzäöüäöü'")  # a cut after 10 bytes would begin with an ä's second byte
    assert (result.stdout, result.stdout_truncated) == ("öüäöü", True)
    monkeypatch.setattr(PROCESS_MODULE, "CAPTURE_LIMIT_BYTES", 9)
    assert bash("printf 'xyzäöüäöü'").stdout == "üäöü"


@live
def test_exactly_the_limit_is_not_truncated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PROCESS_MODULE, "CAPTURE_LIMIT_BYTES", 5)
    result = bash("printf 12345; printf 123456 >&2")
    assert (result.stdout, result.stdout_truncated) == ("12345", False)
    assert (result.stderr, result.stderr_truncated) == ("23456", True)


@live
def test_both_streams_can_be_full_at_once():
    result = bash("head -c 3000000 /dev/zero | tr '\\0' o & head -c 3000000 /dev/zero | tr '\\0' e >&2; wait")
    assert result.stdout == "o" * 3_000_000
    assert result.stderr == "e" * 3_000_000


# Files


@live
def test_a_file_gets_the_output_and_the_result_its_path(tmp_path: Path):
    result = bash("echo out; echo err >&2", stdout=tmp_path / "o", stderr=str(tmp_path / "e"))
    assert (result.stdout, result.stderr) == (None, None)
    assert (result.stdout_path, result.stderr_path) == (str(tmp_path / "o"), str(tmp_path / "e"))
    assert ((tmp_path / "o").read_text(), (tmp_path / "e").read_text()) == ("out\n", "err\n")


@live
def test_modes_are_those_of_open(tmp_path: Path):
    for target in ("f", ("f", "w"), ("f", "wb"), ["f", "w+"]):
        (tmp_path / "f").write_text("something long from before")
        run_bash(BashCommand(**{**vars(call("echo new", cwd=tmp_path)), "stdout": target}))
        assert (tmp_path / "f").read_text() == "new\n"
    bash("echo more", stdout=("f", "a"), cwd=tmp_path)
    assert (tmp_path / "f").read_text() == "new\nmore\n"
    with pytest.raises(FileExistsError):
        bash("echo x", stdout=("f", "x"), cwd=tmp_path)
    bash("echo x", stdout=("g", "xb"), cwd=tmp_path)
    assert (tmp_path / "g").read_text() == "x\n"


@live
@pytest.mark.parametrize("mode", ["w", "a", "x"])
def test_both_streams_can_share_a_file(tmp_path: Path, mode: str):
    result = bash(
        "for i in 1 2 3; do echo o$i; echo e$i >&2; done",
        stdout=(tmp_path / "log", mode),
        stderr=(f"{tmp_path}/../{tmp_path.name}/log", mode),
    )
    assert (tmp_path / "log").read_text() == "o1\ne1\no2\ne2\no3\ne3\n"
    assert result.stdout_path == result.stderr_path == str(tmp_path / "log")


@live
def test_a_link_to_the_same_file_is_the_same_file(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "log")
    bash("echo o; echo e >&2; echo o", stdout="log", stderr="link", cwd=tmp_path)
    assert (tmp_path / "log").read_text() == "o\ne\no\n"


@live
def test_one_file_with_two_modes_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="one file"):
        bash("true", stdout=tmp_path / "f", stderr=(tmp_path / "f", "a"))


@live
def test_no_directory_is_made_for_a_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="directory of stderr does not exist") as caught:
        bash("true", stderr="no/such/file", cwd=tmp_path)
    assert caught.value.filename == str(tmp_path / "no/such/file")
    assert list(tmp_path.iterdir()) == []


@live
def test_paths_are_relative_to_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "in").write_text("data")
    monkeypatch.chdir(tmp_path)
    result = bash("cat in; pwd > where", cwd="sub", stdout="out", inputs="in", outputs=["out", Path("where")])
    assert (tmp_path / "sub" / "out").read_text() == "data"
    assert (tmp_path / "sub" / "where").read_text() == f"{tmp_path}/sub\n"
    assert result.outputs == (f"{tmp_path}/sub/out", f"{tmp_path}/sub/where")


@live
def test_a_wrong_cwd_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="cwd does not exist"):
        bash("true", cwd=tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="cwd is no directory"):
        bash("true", cwd=tmp_path / "file")


# Environment, inputs and outputs


@live
def test_env_changes_the_environment_of_the_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("REMOVED", "here")
    result = bash("echo $KEPT ${{REMOVED-gone}} $ADDED $N", env={"REMOVED": None, "ADDED": Path("a/b"), "N": 4})
    assert result.stdout == "kept gone a/b 4\n"
    assert os.environ["REMOVED"] == "here"


@live
def test_a_command_does_not_run_without_its_inputs(tmp_path: Path):
    (tmp_path / "here").touch()
    with pytest.raises(FileNotFoundError, match="'.*gone1', '.*gone2'") as caught:
        bash("touch ran", inputs=["here", "gone1", ["gone2"]], cwd=tmp_path)
    assert "here'" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@live
def test_missing_outputs_are_named(tmp_path: Path):
    with pytest.raises(MissingOutputs, match="did not make.*touch made") as caught:
        bash("touch made", outputs=["made", "not made"], cwd=tmp_path)
    assert caught.value.missing == (str(tmp_path / "not made"),)


@live
def test_outputs_of_a_failed_command_are_not_asked_for(tmp_path: Path):
    assert bash("exit 4", outputs="f", cwd=tmp_path, check=False).returncode == 4
    with pytest.raises(BashError):
        bash("exit 4", outputs="f", cwd=tmp_path)


@live
def test_a_result_among_inputs_stands_for_its_outputs(tmp_path: Path):
    first = bash("touch a b", outputs=["a", "b"], cwd=tmp_path)
    assert bash("echo ran", inputs=first).stdout == "ran\n"
    (tmp_path / "b").unlink()
    with pytest.raises(FileNotFoundError, match="/b'"):
        bash("echo ran", inputs=[first])


# Failures


@live
def test_a_failure_carries_command_code_and_stderr():
    with pytest.raises(BashError) as caught:
        bash("echo out; echo {why} >&2; exit 3", why="no luck")
    error = caught.value
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.cmd, error.returncode) == ("echo out; echo 'no luck' >&2; exit 3", 3)
    assert (error.stdout, error.stderr) == ("out\n", "no luck\n")
    assert "exit code 3" in str(error)
    assert "echo 'no luck'" in str(error)
    assert str(error).endswith("stderr:\n  no luck")


@live
def test_the_message_has_the_last_lines_only():
    with pytest.raises(BashError) as caught:
        bash("seq 1000000 >&2; exit 1")
    shown = str(caught.value).split("stderr:\n")[1].split()
    assert shown == [str(n) for n in range(1_000_000 - 19, 1_000_001)]
    assert len(caught.value.stderr) <= 64 * 1024
    assert caught.value.stderr.endswith("999999\n1000000\n")


@live
def test_one_long_line_is_cut():
    with pytest.raises(BashError) as caught:
        bash("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1")
    assert len(str(caught.value)) < 3000


@live
def test_a_program_that_complains_on_stdout_is_heard():
    with pytest.raises(BashError, match=r"end of its stdout:\n  it broke"):
        bash("echo it broke; exit 1")
    with pytest.raises(BashError, match="wrote nothing"):
        bash("exit 1")


@live
def test_the_tail_of_a_stderr_file_is_in_the_error(tmp_path: Path):
    (tmp_path / "log").write_text("from an earlier run\n")
    with pytest.raises(BashError) as caught:
        bash("seq 100000 >&2; echo this one >&2; exit 1", stderr=("log", "a"), cwd=tmp_path)
    assert caught.value.stderr.endswith("100000\nthis one\n")
    assert str(tmp_path / "log") in str(caught.value)
    with pytest.raises(BashError) as caught:
        bash("echo later >&2; exit 1", stderr=("log", "a"), cwd=tmp_path)
    assert caught.value.stderr == "later\n"


@live
def test_a_stderr_that_is_no_file_any_more_does_not_hide_the_failure(tmp_path: Path):
    with pytest.raises(BashError, match="exit code 5"):
        bash("echo x >&2; rm log; exit 5", stderr="log", cwd=tmp_path)
    with pytest.raises(BashError, match="exit code 5"):
        bash("exit 5", stderr="/dev/null")


@live
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_a_signal_is_named(name: str):
    number = signal.Signals[name]
    with pytest.raises(BashError, match=f"ended by {name}") as caught:
        bash("kill -{n} $$", n=int(number))
    assert caught.value.returncode == -number
    with pytest.raises(BashError, match=f"{name} ended a program"):
        bash("bash -c 'kill -{n} $$'; exit $?", n=int(number))
    assert bash(["bash", "-c", f"kill -{number:d} $$"], check=False).returncode == -number


@live
def test_a_program_that_bash_cannot_find_or_run_is_hinted_at(tmp_path: Path):
    with pytest.raises(BashError, match="not found"):
        bash("no-such-program-anywhere")
    (tmp_path / "f").touch()
    with pytest.raises(BashError, match="cannot be executed"):
        bash("./f", cwd=tmp_path)


@live
def test_a_result_without_check_is_no_error():
    assert bash("kill -9 $$", check=False).returncode == -9
    assert bash(["false"], check=False).returncode == 1


# Timeouts


@live
def test_a_timeout_ends_the_whole_tree(ready: Path, monkeypatch: pytest.MonkeyPatch):
    """Also what left the process group, as the programs that `timeout` runs do."""
    monkeypatch.setattr(PROCESS_MODULE, "KILL_AFTER_S", 60.0)
    inner = "echo $$; touch ready; exec sleep 1000"
    script = f"sleep 1000 & echo $!; echo ready >&2; (sleep 1000 & echo $!; timeout 1000 sh -c '{inner}'; true) & wait"
    started = time.monotonic()
    with pytest.raises(BashTimeout) as caught:
        bash(script, timeout=TIMEOUT_S, cwd=ready)
    assert time.monotonic() - started < PROCESS_MODULE.KILL_AFTER_S
    error = caught.value
    assert isinstance(error, TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert (error.cmd, error.timeout_s, error.stderr) == (script, TIMEOUT_S, "ready\n")
    assert "more than 1 s" in str(error)
    pids = pids_in(error.stdout)
    assert len(pids) == 3
    assert all(has_ended(pid) for pid in pids)


@live
def test_what_ignores_term_is_killed(ready: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PROCESS_MODULE, "KILL_AFTER_S", 0.2)
    script = "trap '' TERM; echo $$; sleep 1000 & echo $!; setsid sleep 1000 & echo $!; touch ready; wait; wait; wait"
    with pytest.raises(BashTimeout) as caught:
        bash(script, timeout=TIMEOUT_S, cwd=ready)
    pids = pids_in(caught.value.stdout)
    assert len(pids) == 3
    assert all(has_ended(pid) for pid in pids)


@live
def test_what_leaves_the_group_when_it_is_asked_to_end_is_killed(ready: Path, monkeypatch: pytest.MonkeyPatch):
    """By then its shell has died, and it is nobody's descendant any more."""
    monkeypatch.setattr(PROCESS_MODULE, "KILL_AFTER_S", 1.0)
    script = "(trap 'exec setsid sleep 1000' TERM; echo $BASHPID; touch ready; sleep 1000 & wait); true"
    with pytest.raises(BashTimeout) as caught:
        bash(script, timeout=TIMEOUT_S, cwd=ready)
    [pid] = pids_in(caught.value.stdout)
    assert has_ended(pid)


@live
def test_a_shell_that_ignores_term_does_not_go_on_behind_what_is_killed(ready: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PROCESS_MODULE, "KILL_AFTER_S", 0.1)
    many = "for _ in {{1..60}}; do sleep 1000 & done"  # to kill them takes a while
    script = f"trap '' TERM; sleep 1000 & first=$!; {many}; touch ready; wait $first; touch next"
    for _ in range(5):
        with pytest.raises(BashTimeout):
            bash(script, timeout=TIMEOUT_S, cwd=ready)
        assert os.listdir(ready) == ["ready"]
        (ready / "ready").unlink()


@live
def test_term_lets_a_command_clean_up(ready: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PROCESS_MODULE, "KILL_AFTER_S", 60.0)
    script = "trap 'rm scratch; echo cleaned; exit 0' TERM; touch scratch; touch ready; sleep 1000 & wait"
    with pytest.raises(BashTimeout) as caught:
        bash(script, timeout=TIMEOUT_S, cwd=ready)
    assert caught.value.stdout == "cleaned\n"
    assert os.listdir(ready) == ["ready"]


@live
def test_a_child_may_clean_up_after_its_shell_has_died(ready: Path, monkeypatch: pytest.MonkeyPatch):
    """bash itself dies of TERM at once; the program that it ran still has its time."""
    monkeypatch.setattr(PROCESS_MODULE, "KILL_AFTER_S", 60.0)
    script = "(trap 'sleep 0.3; echo saved > state; exit' TERM; touch ready; sleep 1000 & wait); true"
    with pytest.raises(BashTimeout):
        bash(script, timeout=TIMEOUT_S, cwd=ready)
    assert (ready / "state").read_text() == "saved\n"


@live
def test_a_timeout_holds_against_endless_output(ready: Path):
    with pytest.raises(BashTimeout) as caught:
        bash("yes | (head -c 1000000; touch ready; exec cat)", timeout=TIMEOUT_S, cwd=ready)
    assert set(caught.value.stdout) == {"y", "\n"}


@live
def test_a_command_in_time_is_not_touched():
    assert bash("sleep 0.05; echo done", timeout=60).stdout == "done\n"


# What a command leaves behind


@live
def test_the_command_has_its_own_group_in_the_session_of_the_worker():
    fields = bash("echo $$; cut -d ' ' -f 5,6 /proc/$$/stat").stdout
    assert fields is not None
    pid, group, session = pids_in(fields)
    assert group == pid != os.getpgid(0)
    assert session == os.getsid(0)


@live
def test_background_processes_do_not_outlive_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PROCESS_MODULE, "LINGER_S", 0.1)
    result = bash("sleep 1000 & echo $!; sleep 1000 > /dev/null 2>&1 & echo $!; (trap '' TERM; sleep 1000) & echo $!")
    assert result.stdout is not None
    assert len(pids_in(result.stdout)) == 3
    assert all(has_ended(pid) for pid in pids_in(result.stdout))
    assert result.wall_s < 60


@live
def test_a_process_substitution_finishes_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """bash does not wait for it."""
    monkeypatch.setattr(PROCESS_MODULE, "LINGER_S", 60.0)
    script = "seq 1000 > >(sleep 0.2; sort -n > sorted; echo sorted)"
    started = time.monotonic()
    result = bash(script, cwd=tmp_path)
    assert result.stdout == "sorted\n"
    assert (tmp_path / "sorted").read_text().split() == [str(n) for n in range(1, 1001)]
    assert time.monotonic() - started < PROCESS_MODULE.LINGER_S  # woken by its end
    bash("echo x > >(sleep 0.2; cat > late)", cwd=tmp_path, stdout="/dev/null", stderr="/dev/null")
    assert (tmp_path / "late").read_text() == "x\n"


@live
def test_a_daemon_that_leaves_the_session_survives_and_delays_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PROCESS_MODULE, "LINGER_S", 60.0)
    started = time.monotonic()
    # It tells its number when it has left.
    result = bash("read -r pid < <(setsid sh -c 'echo $$; exec sleep 1000 > /dev/null 2>&1'); echo $pid")
    took_s = time.monotonic() - started
    [pid] = pids_in(str(result))
    try:
        os.kill(pid, 0)
        assert took_s < PROCESS_MODULE.LINGER_S
    finally:
        os.kill(pid, signal.SIGKILL)
        assert has_ended(pid)


@live
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_an_exception_in_the_worker_kills_the_command(number: signal.Signals, tmp_path: Path):
    """Raised by a signal handler while the command runs: KeyboardInterrupt, and SystemExit."""

    # `timeout` makes a process group of its own.
    # Again after a while: what comes just before a system call does not interrupt that call.
    inner = "echo $$ >> pids; while kill -$number $worker; do sleep 2; done"
    script = f"export worker=$PPID number={{n}}; echo $$ > pids; timeout 1000 sh -c '{inner}'; true"

    def leave(signum: int, frame: object) -> None:
        signal.signal(signum, signal.SIG_IGN)  # or the next one strikes while the first is coped with
        raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit

    previous = signal.signal(number, leave)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            bash(script, n=int(number), cwd=tmp_path)
    finally:
        signal.signal(number, previous)
    pids = pids_in((tmp_path / "pids").read_text())
    assert len(pids) == 2
    assert all(has_ended(pid) for pid in pids)


@live
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("text", ["sleep 1000", "sleep 1000; true"])
def test_an_interrupt_in_the_middle_of_the_start_loses_no_child(text: str, error: type[BaseException]):
    """The signal comes at each of the first moments, of a program and of bash; its error may be an OSError."""

    def interrupt(number: int, frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # or the next one strikes while the first is coped with
        raise error

    # Where bash is, is looked for only once, by functions of the standard library that would swallow an error.
    bash("true; true")
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    known = children.read_text()
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for microseconds in range(100, 4000, 150):
            with pytest.raises(error):
                # Again after a while: what comes just before a system call does not interrupt that call.
                signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6, 2.0)
                bash(text)
            assert children.read_text() == known
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@live
def test_no_descriptor_is_left_open(tmp_path: Path):
    before = open_descriptors()
    bash("true")
    bash("true", stdout=tmp_path / "f", stderr=tmp_path / "f")
    with pytest.raises(BashError):
        bash("sleep 0.1 & false")
    with pytest.raises(FileNotFoundError):
        bash(["no-such-program-anywhere"])
    with pytest.raises(FileNotFoundError):
        bash("true", stderr=tmp_path / "no/f")
    with pytest.raises(BashTimeout):
        bash("sleep 1000", timeout=0.05)
    assert open_descriptors() == before


@live
def test_calls_in_several_threads_do_not_disturb_each_other():
    results: dict[int, str] = {}

    def run(n: int) -> None:
        results[n] = str(bash("sleep 0.0{n}; echo {n}", n=n))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: str(n) for n in range(8)}


# Systems that have less


@pytest.fixture
def without_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    def pidfd_open(pid: int) -> int:
        raise OSError(errno.ENOSYS, "no such system call")

    monkeypatch.setattr(PROCESS_MODULE.os, "pidfd_open", pidfd_open)


@live
@pytest.mark.usefixtures("without_pidfds")
def test_without_pidfds_commands_run_and_fail_as_ever():
    assert bash("echo a; exit 3", check=False).returncode == 3
    assert bash("head -c 1000000 /dev/zero").stdout == "\0" * 1_000_000
    with pytest.raises(BashTimeout):
        bash("timeout 1000 sleep 1000; true", timeout=TIMEOUT_S)
    bash("sleep 1000 & setsid true")


@live
def test_a_command_that_a_kill_does_not_end_does_not_take_its_worker_along(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As if stuck in the kernel: its end is never reported."""
    monkeypatch.setattr(PROCESS_MODULE, "VANISH_S", 0.1)
    monkeypatch.setattr(PROCESS_MODULE, "KILL_AFTER_S", 0.1)
    never, write_fd = os.pipe()
    monkeypatch.setattr(PROCESS_MODULE, "_exit_fd", lambda pid: os.dup(never))
    still_running = pytest.warns(ResourceWarning, match="still running")  # from subprocess, which will reap it
    with still_running, pytest.raises(BashTimeout):
        bash("sleep 1000", timeout=0.2)
    assert "does not end" in caplog.text
    os.close(never)
    os.close(write_fd)
    subprocess._cleanup()  # type: ignore[attr-defined]


@live
def test_a_worker_that_ignores_its_children_is_told():
    code = """
        import signal
        from hpcpool.bash import BashCommand, run_bash
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            run_bash(BashCommand.of("exit 3"))
        except ChildProcessError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert "is SIGCHLD ignored?" in done.stdout, done.stderr


# What travels


def round_trip(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def test_a_call_travels():
    made = call("echo {x} {xs}", x=Path("a"), xs=[1, 2], stdout=("f", "a"), env={"A": None}, timeout=3, outputs="f")
    assert round_trip(made) == made


@live
def test_a_result_travels():
    result = bash("echo a; echo b >&2; exit 3", check=False)
    assert round_trip(result) == result


def failing(make: Callable[[], object]) -> Exception:
    try:
        make()
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


@live
@pytest.mark.parametrize(
    "make",
    [
        lambda: bash("echo a; echo b >&2; exit 3"),
        lambda: bash(["false"]),
        lambda: bash("echo a; sleep 1000", timeout=TIMEOUT_S),
        lambda: bash("true", outputs=["/no/such/file"]),
        lambda: bash("true", inputs=["/no/such/file"]),
        lambda: bash(["no-such-program-anywhere"]),
        lambda: bash("true", cwd="/no/such/directory"),
        lambda: bash("{x:d}", x="a"),
    ],
)
def test_an_error_travels(make: Callable[[], object]):
    error = failing(make)
    copy = round_trip(error)
    assert type(copy) is type(error)
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))


def test_a_worker_imports_little():
    """The standard library and the errors: bash calls are imported on each node of a cluster."""
    code = f"""
        import sys, types
        package = sys.modules["hpcpool"] = types.ModuleType("hpcpool")  # not the public names, which are all there is
        package.__path__ = [{str(Path(bash_module.__file__).parent)!r}]
        before = set(sys.modules)
        import hpcpool.bash
        print(*(name for name in sys.modules if name not in before))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    imported = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    ours = {name for name in imported if name.startswith("hpcpool")}
    assert "hpcpool.bash" in ours
    assert ours <= {
        "hpcpool.bash",
        "hpcpool.bash_process",
        "hpcpool.bash_template",
        "hpcpool.processes",
        "hpcpool.processes.process_end",
        "hpcpool.simple_command",
        "hpcpool.wire",
        "hpcpool.wire.staged",
        "hpcpool.errors",
        "hpcpool.quantities",
    }
    # multiprocessing gives `__main__` that second name.
    others = {name.partition(".")[0] for name in imported} - {"hpcpool", "__mp_main__"}
    assert others <= sys.stdlib_module_names
