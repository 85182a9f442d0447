"""Bash calls: what `ex.bash(...)` sends to a worker, how it is run there, and what comes back; no pool, no scheduling.

At the call, `BashCommand.of` looks at names and kinds, never at values: any value may still be a future. At the worker,
where futures have become their results, `run_bash` puts the values in and runs the command.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from hpcpool.bash_process import OPEN_FLAGS, Capture, File, Running, Stream, host
from hpcpool.bash_template import (
    MESSAGE_COMMAND_CHARS,
    check_fields,
    flat,
    quoted_names,
    render,
    shortened,
    text_of,
)
from hpcpool.errors import BashError, BashTimeout, MissingOutputs, signal_name
from hpcpool.quantities import seconds
from hpcpool.wire import staged

#: How much of a stream an error's message shows; its attributes carry more.
_MESSAGE_TAIL_CHARS = 2048
_MESSAGE_TAIL_LINES = 20

AnyPath: TypeAlias = "str | os.PathLike[str] | Future[Any]"
#: Where a stream goes: a file, or a file and the mode to open it with ("w", "a" or "x").
Target: TypeAlias = "AnyPath | tuple[AnyPath, str]"


@dataclass(frozen=True)
class BashCommand:
    """One bash call as it travels to a worker; `of` and `verbatim` make it, and check it."""

    #: A template for bash, or the arguments of a program that is run without a shell.
    command: str | tuple[object, ...]
    fields: dict[str, object]
    stdout: object
    stderr: object
    cwd: object
    env: object
    timeout_s: float | None
    check: bool
    inputs: tuple[object, ...]
    outputs: tuple[object, ...]

    @classmethod
    def of(
        cls,
        command: str | Sequence[object],
        *,
        stdout: Target | None = None,
        stderr: Target | None = None,
        cwd: AnyPath | None = None,
        env: Mapping[str, object] | Future[Any] | None = None,
        timeout: float | None = None,
        check: bool = True,
        inputs: object = (),
        outputs: object = (),
        fields: Mapping[str, object] | None = None,
    ) -> BashCommand:
        """Check a bash call and return it. A value may be a future, or contain some: they stay as they are.

        `command`: a template that bash runs, or a list of arguments that is run without a shell.

        - In a template, each `{field}` becomes one word of the shell, whatever is in it; a list or tuple becomes one
          word for each item. `{x:.3f}`, `{x!r}`, `{record.name}` and `{files[0]}` work as in `str.format`.
        - `{flags:raw}` opts out of quoting: the value goes in as it is, for bash to split and expand.
        - Braces that bash should see are doubled: `awk '{{print $1}}'`, `${{HOME}}`.
        - Put no quotes around a field. Inside quotes, here documents, comments and `$((...))`, only values that need
          no quoting (numbers, plain names) can be filled in; another one is refused when the call runs.
        - Quoting does not stop a value that begins with `-` from being taken for an option: `rm -- {name}`.
        - No shell option is set for you: without `set -o pipefail;` only the last command of a pipe decides about
          success, and without `set -e;` only the last command of a script.
        - In a list, each item is one argument (a list in it: several), and there are no fields.
        - A text that is only a program and its arguments is started without bash, as bash would have done it.

        `stdout`, `stderr`: None captures the text (its last 16 MiB). A path, or `(path, mode)` with mode "w" (the
        default), "a" or "x", lets the command write there; both may name one file. `cwd`: where the command runs;
        relative paths in `stdout`, `stderr`, `inputs` and `outputs` start there, as after `cd`. No directory is made.
        `env`: changes to the worker's environment; the value None removes a variable. `timeout`: seconds until the
        command and its descendants get TERM, and KILL 2 seconds later. `check`: whether a non-zero exit is an error.
        `inputs`, `outputs`: the path, or paths, that must exist before, and after success; the result of another bash
        call stands for its outputs.

        Raises `TypeError` for a missing or extra field and for an argument of the wrong type, `ValueError` for a
        malformed template, mode, name or timeout.
        """
        fields = {} if fields is None else fields
        _check_command(command, fields)
        _check_target("stdout", stdout)
        _check_target("stderr", stderr)
        _check_cwd(cwd)
        _check_env(env)
        return cls(
            command=command if isinstance(command, str) else tuple(command),
            fields=dict(fields),
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=dict(env) if isinstance(env, Mapping) else env,
            timeout_s=seconds("bash(): timeout", timeout),
            check=bool(check),
            inputs=_checked_paths("inputs", inputs),
            outputs=_checked_paths("outputs", outputs),
        )

    @classmethod
    def verbatim(cls, command: str, **options: Any) -> BashCommand:
        """A call whose text goes to bash as it is, braces and all; the options are those of `of`, without fields."""
        if not isinstance(command, str):
            raise TypeError(f"the text for bash is a string, not {type(command).__name__}: {command!r}")
        return cls.of(command.replace("{", "{{").replace("}", "}}"), **options)

    def as_run(self) -> str | tuple[str, ...]:
        """The command with its values in place: text for bash, or the arguments of a program."""
        if isinstance(self.command, str):
            return render(self.command, self.fields)
        arguments = tuple(text_of(item) for item in flat(self.command))
        if not arguments:
            raise ValueError("bash(): the list of arguments has no program to run")
        return arguments


@dataclass(frozen=True, repr=False)
class BashResult:
    """What a bash call gave.

    `str(result)` is what `$(...)` gives in a shell: the captured stdout without its last newlines; if stdout went to a
    file, the path of the file. So a bash call can be a field of the next one.
    """

    #: As run: the text that bash got, or the arguments.
    command: str | tuple[str, ...]
    #: The exit code; negative: the number of the signal that ended the command.
    returncode: int
    #: Captured text (UTF-8, what is not is replaced; newlines as written); None if the stream went to a file.
    stdout: str | None
    stderr: str | None
    #: The absolute path of the file that the stream went to; None if it was captured.
    stdout_path: str | None
    stderr_path: str | None
    #: True if there was more than 16 MiB, of which only the end was kept.
    stdout_truncated: bool
    stderr_truncated: bool
    #: From its start to its end, in seconds.
    wall_s: float
    #: User and system time of the command and of those descendants that their parents waited for.
    cpu_s: float
    #: The absolute paths of `outputs`, in order; of a `File`, on the client's host.
    outputs: tuple[str, ...]
    #: Those of them that were made on another host and brought to the client's.
    _brought: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (self.stdout_path or "") if self.stdout is None else self.stdout.rstrip("\n")

    def __repr__(self) -> str:
        """Short: the text may have 16 MiB."""
        return (
            f"BashResult({shortened(_shown(self.command), 100)!r}, returncode={self.returncode}, "
            f"{_stream_repr('stdout', self.stdout, self.stdout_path)}, "
            f"{_stream_repr('stderr', self.stderr, self.stderr_path)}, "
            f"wall_s={self.wall_s:.3f}, cpu_s={self.cpu_s:.3f})"
        )


def run_bash(call: BashCommand) -> BashResult:
    """Run a bash call to its end, at the worker; no process of its group is alive afterwards.

    What the command left in the background gets a second to end by itself, and is then killed. A daemon that must
    outlive its call leaves the group and the session (`setsid`); a timeout ends that too, while its parent lives.

    Raises `BashError` (a non-zero exit, with `check`), `BashTimeout`, `MissingOutputs`, `FileNotFoundError` (an input,
    a directory, the program or bash is missing), and what opening a file and starting a process can raise.
    """
    directory = _directory(call.cwd)
    # First of all: then other mentions of the same files lead to where they are to be made, too.
    outputs = _absolute_paths("outputs", tuple(_as_outputs(call.outputs, call.inputs)), directory)
    command = call.as_run()
    _require_inputs(_absolute_paths("inputs", call.inputs, directory))
    environment = _environment(call.env)
    with contextlib.ExitStack() as cleanup:
        stdout, stderr = _open_streams(call, directory, cleanup)
        ended = Running(stdout, stderr).run(command, directory, environment, call.timeout_s)
    if ended is None:
        _raise_timeout(command, call.timeout_s, stdout, stderr)
    if ended.returncode and call.check:
        _raise_failure(command, ended.returncode, stdout, stderr)
    if not ended.returncode:
        _require_outputs(command, outputs)
    return BashResult(
        command=command,
        returncode=ended.returncode,
        stdout=stdout.text(),
        stderr=stderr.text(),
        stdout_path=stdout.path and _client_path(stdout.path),
        stderr_path=stderr.path and _client_path(stderr.path),
        stdout_truncated=stdout.is_truncated,
        stderr_truncated=stderr.is_truncated,
        wall_s=ended.wall_s,
        cpu_s=ended.cpu_s,
        outputs=tuple(map(_client_path, outputs)),
        _brought=tuple(path for path in map(_client_path, outputs) if path not in outputs),
    )


# Checks at the call: names and kinds, never values.


def _check_command(command: object, fields: Mapping[str, object]) -> None:
    match command:
        case str():
            check_fields(command, fields)
        case list() | tuple():
            if not command:
                raise ValueError("bash(): the list of arguments has no program to run")
            if fields:
                raise TypeError(
                    f"bash(): a list of arguments has no fields, but got {quoted_names(fields)}; "
                    "put the values into the list"
                )
        case Future():
            raise TypeError("bash(): the command is a future; to run its result, use bash('{script:raw}', script=...)")
        case _:
            raise TypeError(
                f"bash(): the command is a string (a template for bash) or a list of arguments, "
                f"not {type(command).__name__}: {command!r}"
            )


def _check_target(name: str, target: object) -> None:
    """Refuse what cannot be a stream's file. Of a future only its result can tell, so the worker asks again."""
    match target:
        case None | str() | os.PathLike() | Future() | (str() | os.PathLike() | Future(), Future()):
            return
        case (str() | os.PathLike() | Future(), str(mode)):
            if mode not in OPEN_FLAGS:
                raise ValueError(f"bash(): the mode of {name} is 'w', 'a' or 'x', not {mode!r}")
        case _:
            raise TypeError(f"bash(): {name} is None, a path or (path, mode), not {target!r}")


def _check_cwd(cwd: object) -> None:
    if not (cwd is None or isinstance(cwd, str | os.PathLike | Future)):
        raise TypeError(f"bash(): cwd is a path or None, not {type(cwd).__name__}: {cwd!r}")


def _check_env(env: object) -> None:
    if env is None or isinstance(env, Future):
        return
    if not isinstance(env, Mapping):
        raise TypeError(f"bash(): env is a mapping of names to values, not {type(env).__name__}: {env!r}")
    for name in env:
        if not isinstance(name, str):
            raise TypeError(f"bash(): a name in env is a string, not {name!r}")
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"bash(): {name!r} cannot be the name of an environment variable")


def _checked_paths(name: str, paths: object) -> tuple[object, ...]:
    if isinstance(paths, str | os.PathLike | Future | BashResult):
        return (paths,)
    if isinstance(paths, bytes | Mapping) or not isinstance(paths, Iterable):
        raise TypeError(f"bash(): {name} is a path or several paths, not {type(paths).__name__}: {paths!r}")
    return tuple(paths)


# Paths, environment and streams at the worker, where futures have become their results.


def _path(name: str, value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"bash(): {name} is a path, not {type(value).__name__}: {value!r}")
    return os.fsdecode(value)


def _absolute(directory: str | None, path: str) -> str:
    return os.path.abspath(os.path.join(directory or "", path))


def _absolute_paths(name: str, values: tuple[object, ...], directory: str | None) -> tuple[str, ...]:
    paths: list[str] = []
    for value in flat(values):
        if isinstance(value, BashResult):
            paths.extend(_again(path) if path in value._brought else path for path in value.outputs)
        else:
            paths.append(_absolute(directory, _path(name, value)))
    return tuple(paths)


def _as_outputs(outputs: tuple[object, ...], inputs: tuple[object, ...]) -> Iterator[object]:
    changed = tuple(flat(inputs)) if staged.is_far() else ()
    for value in flat(outputs):
        yield _as_output(value, is_changed=value in changed)


def _as_output(value: object, *, is_changed: bool) -> object:
    """What the command writes to; a `File` that it changes has what is in it now."""
    files = sys.modules.get("hpcpool.file")  # a `File` among the values has brought it here; most calls have none
    if files is None or not isinstance(value, files.File):
        return value
    if is_changed and staged.is_far():
        from hpcpool import staging

        return staging.path_to_change(value)
    return value._as_output()


def _again(path: str) -> str:
    """Where the call finds a file that a call before it has made for the client."""
    from hpcpool.file import File

    return os.fspath(File(path))


def _client_path(path: str) -> str:
    """What the client calls a file that was made here."""
    if staged.current is None:
        return path
    from hpcpool import staging  # only where files are brought from one host to another

    return staging.client_path(path)


def _directory(cwd: object) -> str | None:
    if cwd is None:
        return None
    directory = os.path.abspath(_path("cwd", cwd))
    if os.path.isdir(directory):
        return directory
    if os.path.exists(directory):
        raise NotADirectoryError(errno.ENOTDIR, f"bash(): cwd is no directory on {host()}", directory)
    raise FileNotFoundError(errno.ENOENT, f"bash(): cwd does not exist on {host()}", directory)


def _require_inputs(paths: tuple[str, ...]) -> None:
    if missing := [_client_path(path) for path in paths if not os.path.exists(path)]:
        raise FileNotFoundError(errno.ENOENT, f"bash(): not run, inputs missing on {host()}: {quoted_names(missing)}")


def _require_outputs(command: str | tuple[str, ...], paths: tuple[str, ...]) -> None:
    if missing := tuple(_client_path(path) for path in paths if not os.path.exists(path)):
        raise MissingOutputs(
            f"bash command succeeded on {host()} but did not make {quoted_names(missing)}: {_brief(command)}",
            missing=missing,
        )


def _environment(env: object) -> dict[str, str] | None:
    """The command's whole environment; None to inherit the worker's, which is faster than a copy."""
    has_nodes = "HPCPOOL_NODES" in os.environ
    if not env and not has_nodes:
        return None
    env = env or {}
    _check_env(env)
    assert isinstance(env, Mapping)
    inherited = _with_mpi_prefix() if has_nodes else os.environ
    changed = {**inherited, **{name: text_of(value) for name, value in env.items() if value is not None}}
    return {name: value for name, value in changed.items() if name not in env or env[name] is not None}


def _with_mpi_prefix() -> Mapping[str, str]:
    # Imported here because few calls have nodes of their own.
    from hpcpool.mpi.step import bash_environment

    return bash_environment(os.environ)


def _open_streams(call: BashCommand, directory: str | None, cleanup: contextlib.ExitStack) -> tuple[Stream, Stream]:
    stdout = _open_stream("stdout", call.stdout, directory)
    cleanup.callback(stdout.close)
    if call.stdout is not None and call.stderr is not None and _are_same_file(call, directory):
        return stdout, stdout
    stderr = _open_stream("stderr", call.stderr, directory)
    cleanup.callback(stderr.close)
    return stdout, stderr


def _open_stream(name: str, target: object, directory: str | None) -> Stream:
    return Capture() if target is None else File(name, *_path_and_mode(name, target, directory))


def _are_same_file(call: BashCommand, directory: str | None) -> bool:
    out, out_mode = _path_and_mode("stdout", call.stdout, directory)
    err, err_mode = _path_and_mode("stderr", call.stderr, directory)
    if os.path.realpath(out) != os.path.realpath(err):
        return False
    if out_mode[0] != err_mode[0]:
        raise ValueError(
            f"bash(): stdout and stderr are one file, {out!r}, but its modes are {out_mode!r}, {err_mode!r}"
        )
    return True


def _path_and_mode(name: str, target: object, directory: str | None) -> tuple[str, str]:
    _check_target(name, target)
    path, mode = target if isinstance(target, tuple | list) else (target, "w")
    if mode[0] != "x":  # which fails if the client has the file
        path = _as_output(path, is_changed=mode[0] == "a")
    return _absolute(directory, _path(name, path)), mode


# What errors and `repr` tell.


def _raise_failure(command: str | tuple[str, ...], returncode: int, stdout: Stream, stderr: Stream) -> NoReturn:
    out, err = stdout.tail(), stderr.tail()
    raise BashError(
        f"bash command {_how(command, returncode)} on {host()}: {_brief(command)}{_last_words(stdout, stderr)}",
        cmd=command,
        returncode=returncode,
        stdout=out,
        stderr=err,
    )


def _raise_timeout(command: str | tuple[str, ...], timeout_s: float | None, stdout: Stream, stderr: Stream) -> NoReturn:
    raise BashTimeout(
        f"bash command took more than {timeout_s:g} s on {host()} and was ended: "
        f"{_brief(command)}{_last_words(stdout, stderr)}",
        cmd=command,
        timeout_s=timeout_s or 0.0,
        stdout=stdout.tail(),
        stderr=stderr.tail(),
    )


def _how(command: str | tuple[str, ...], returncode: int) -> str:
    if returncode < 0:
        return f"was ended by {signal_name(-returncode)}"
    hint = ""
    if isinstance(command, str):
        if returncode == 126:
            hint = " (bash: a program cannot be executed)"
        elif returncode == 127:
            hint = " (bash: a program was not found)"
        elif 128 < returncode < 128 + signal.NSIG:
            hint = f" (bash: {signal_name(returncode - 128)} ended a program)"
    return f"failed with exit code {returncode}{hint}"


def _last_words(stdout: Stream, stderr: Stream) -> str:
    """The end of stderr for a message; of stdout if there is none, for many programs complain there."""
    for name, stream in (("stderr", stderr), ("stdout", stdout)):
        lines = stream.tail()[-_MESSAGE_TAIL_CHARS:].rstrip().splitlines()[-_MESSAGE_TAIL_LINES:]
        if lines:
            where = f" ({stream.path})" if isinstance(stream, File) else ""
            return "\n".join([f"\nThe end of its {name}{where}:", *(f"  {line}" for line in lines)])
    return "\nIt wrote nothing to stderr or stdout."


def _shown(command: str | tuple[str, ...]) -> str:
    return command if isinstance(command, str) else " ".join(shlex.quote(word) for word in command)


def _brief(command: str | tuple[str, ...]) -> str:
    return shortened(_shown(command), MESSAGE_COMMAND_CHARS)


def _stream_repr(name: str, text: str | None, path: str | None) -> str:
    return f"{name}_path={path!r}" if text is None else f"{name}={shortened(text, 60)!r}"
