"""Bash calls: what `ex.bash(...)` sends to a worker, how it is run there, and what comes back; no pool, no scheduling.

At the call, `BashCommand.of` looks at names and kinds, never at values: any value may still be a future. At the worker,
where futures have become their results, `run_bash` puts the values in and runs the command.

Everything happens in the calling thread; a second one is made only where the kernel has no pidfds (before Linux 5.3).
No signal handler is touched.

Rules: a process group is signalled while its leader is not reaped, or while it is known to have members, so that its
number cannot belong to somebody else; whatever ends `Running.run`, nothing of the group is left.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import numbers
import os
import re
import select
import shlex
import signal
import stat
import string
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeAlias

from hpcpool.errors import BashError, BashTimeout, MissingOutputs

#: How much of a command an error's message shows.
MESSAGE_COMMAND_CHARS = 1000

#: Names that a template cannot use, since `ex.bash` takes them itself.
_OPTIONS = frozenset({"stdout", "stderr", "cwd", "env", "timeout", "check", "inputs", "outputs"})

_FORMATTER = string.Formatter()


def check_fields(template: str, fields: Mapping[str, object]) -> None:
    """Raise `ValueError` if the template is malformed, `TypeError` if a field is missing or not used."""
    used = {name for piece in _parse(template) for name in piece.names}
    missing, extra = sorted(used - fields.keys()), sorted(fields.keys() - used)
    parts = []
    if missing:
        parts.append(f"no value for {quoted_names(missing)} (double the braces that bash should see)")
    if taken := sorted(_OPTIONS.intersection(missing)):
        parts.append(f"{quoted_names(taken)} cannot be a field, since bash() has an option of that name")
    if extra:
        parts.append(f"the template does not use {quoted_names(extra)}")
    if parts:
        raise TypeError(f"bash(): {'; '.join(parts)}: {shortened(template, MESSAGE_COMMAND_CHARS)!r}")


def render(template: str, fields: Mapping[str, object]) -> str:
    """The text for bash: each value as shell words, or as it is where the template says `raw`."""
    return "".join(_rendered(piece, fields) for piece in _parse(template))


def text_of(value: object) -> str:
    """A value as the shell sees it before quoting: a path as its name, anything else as `str` has it."""
    return os.fsdecode(value) if isinstance(value, bytes | os.PathLike) else str(value)


def flat(value: object) -> Iterator[object]:
    """The items of a list or tuple, and of lists in it (futures of lists); anything else is its only item."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    else:
        yield value


def shortened(text: str, limit: int) -> str:
    """At most about `limit` characters of a text, its middle left out."""
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


def quoted_names(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(repr(name) for name in names)


class _Piece(NamedTuple):
    """Literal text of a template, and the field that follows it, if any."""

    literal: str
    #: As written, with look-ups ("files[0].name"); "" for no field.
    lookup: str
    conversion: str
    spec: str
    #: Whether bash reads a word where the field stands, so that quotes work there.
    is_word: bool
    #: The fields that the piece needs, those inside its format spec too.
    names: frozenset[str]


@functools.lru_cache(maxsize=64)
def _parse(template: str) -> tuple[_Piece, ...]:
    """Split a template, once for all calls that use it."""
    try:
        parts = list(_FORMATTER.parse(template))
    except ValueError as error:
        _raise_malformed(str(error), template)
    skeleton = "".join(literal + ("" if lookup is None else "\0") for literal, lookup, _, _ in parts)
    if skeleton.count("\0") != sum(lookup is not None for _, lookup, _, _ in parts):
        raise ValueError("bash(): the template contains a NUL character, which no command can have")
    are_words = iter(_Scan(skeleton).answers_of_all() if "\0" in skeleton else ())
    return tuple(
        _Piece(literal, "", "", "", True, frozenset())
        if lookup is None
        else _piece(template, literal, lookup, conversion or "", spec or "", next(are_words))
        for literal, lookup, spec, conversion in parts
    )


def _piece(template: str, literal: str, lookup: str, conversion: str, spec: str, is_word: bool) -> _Piece:
    if conversion not in ("", "r", "s", "a"):
        _raise_malformed(f"unknown conversion '!{conversion}' in the field {{{lookup}}}", template)
    return _Piece(literal, lookup, conversion, spec, is_word, _names(lookup, spec, template))


def _names(lookup: str, spec: str, template: str) -> frozenset[str]:
    name = re.split(r"[.\[]", lookup, maxsplit=1)[0]
    if not name or name.isdecimal():
        _raise_malformed(f"a field needs a name, as in {{name}}, but there is {{{lookup}}}", template)
    if not name.isidentifier():
        _raise_malformed(f"{{{lookup}}} is not the name of a field", template)
    names = {name}
    for _, inner, inner_spec, _ in _FORMATTER.parse(spec):
        if inner is not None:
            names |= _names(inner, inner_spec or "", template)
    return frozenset(names)


def _raise_malformed(why: str, template: str) -> NoReturn:
    raise ValueError(
        f"bash(): {why}; braces that bash should see are doubled, as in awk '{{{{print $1}}}}' or ${{{{HOME}}}}: "
        f"{shortened(template, MESSAGE_COMMAND_CHARS)!r}"
    ) from None


def _rendered(piece: _Piece, fields: Mapping[str, object]) -> str:
    if not piece.lookup:
        return piece.literal
    texts = _texts(piece, fields)
    if piece.spec == "raw":
        return piece.literal + " ".join(texts)
    words = [shlex.quote(text) for text in texts]
    if not piece.is_word and words != texts:
        raise ValueError(
            f"bash(): the field {{{piece.lookup}}} stands inside quotes, a here document, a comment or $((...)), where "
            f"its value {shortened(' '.join(texts), 100)!r} cannot be quoted; fields are quoted already, so take the "
            f"quotes around it away, or write {{{piece.lookup}:raw}} to put it in as it is"
        )
    return piece.literal + " ".join(words)


def _texts(piece: _Piece, fields: Mapping[str, object]) -> list[str]:
    try:
        value, _ = _FORMATTER.get_field(piece.lookup, (), fields)
        spec = "" if piece.spec == "raw" else _FORMATTER.vformat(piece.spec, (), fields)
        return [_formatted(item, piece.conversion, spec) for item in flat(value)]
    except Exception as error:  # attributes and formats of any class: user code
        error.add_note(f"in the field {{{piece.lookup}}} of a bash template")
        raise


def _formatted(value: object, conversion: str, spec: str) -> str:
    if conversion:
        value = _FORMATTER.convert_field(value, conversion)
    elif isinstance(value, bytes | os.PathLike):
        value = os.fsdecode(value)
    return format(value, spec)


#: Characters that mean nothing in any of the states of a scan.
_PLAIN = re.compile(r"""[^\0\\'"$()`#\n<]+""")
_DOCUMENT = re.compile(r"<<-?[ \t]*([^\s;&|()<>]*)")

_OPENS = {"'": "'", "$'": "$'", '"': '"', "`": "`", "$((": "((", "((": "((", "$(": "(", "(": "("}
_OPENS_IN_CODE = ("$'", "'", '"', "`", "$((", "((", "$(", "(")
_OPENS_IN_QUOTES = ("$((", "$(", "`")


class _Scan:
    """Walks a script and keeps what it is inside of: enough of bash's grammar to tell words from quotes.

    It errs to the safe side: what bash nests in odd ways (a `case` inside `"$(...)"`, `<<` in `let`) is taken for
    quotes, and there a value that needs quotes is refused, not misread.
    """

    def __init__(self, script: str) -> None:
        self._script = script
        self._at = 0
        #: For each field (a NUL) passed so far: whether bash reads a word there.
        self._answers: list[bool] = []
        #: Innermost last: "", "(" and "`" are code; "'", "$'" and '"' quotes; "((" and "a(" arithmetic.
        self._inside = [""]
        #: Delimiters of here documents whose text begins after the next newline.
        self._documents: list[str] = []

    def answers_of_all(self) -> list[bool]:
        while self._at < len(self._script):
            self._step()
        return self._answers

    def _step(self) -> None:
        inside, here = self._inside[-1], self._script[self._at]
        if plain := _PLAIN.match(self._script, self._at):
            self._at = plain.end()
        elif here == "\0":
            is_bare = self._at == 0 or self._script[self._at - 1] not in "$\\"
            self._answers.append(is_bare and inside in ("", "(", "`"))
            self._at += 1
        elif here == "\\" and inside != "'":
            self._at += 1 if self._script.startswith("\0", self._at + 1) else 2
        elif inside in ("'", "$'"):
            self._close_or_go_on("'")
        elif inside == '"':
            if not self._has_opened(_OPENS_IN_QUOTES):
                self._close_or_go_on('"')
        elif inside in ("((", "a("):
            self._step_in_arithmetic(inside, here)
        else:
            self._step_in_code(inside, here)

    def _step_in_arithmetic(self, inside: str, here: str) -> None:
        if here == "(":
            self._inside.append("a(")
            self._at += 1
        else:
            self._close_or_go_on("))" if inside == "((" else ")")

    def _step_in_code(self, inside: str, here: str) -> None:
        if here == "\n":
            self._at += 1
            self._pass_documents()
        elif here == "#" and (self._at == 0 or self._script[self._at - 1] in " \t\n;&|()`"):
            end = self._script.find("\n", self._at)
            self._pass(end if end >= 0 else len(self._script))
        elif self._script.startswith("<<<", self._at):
            self._at += 3
        elif document := _DOCUMENT.match(self._script, self._at):
            self._documents.append(re.sub(r"['\"\\]", "", document[1]))
            self._pass(document.end())
        elif inside == "`" and here == "`":
            self._close_or_go_on("`")
        elif not self._has_opened(_OPENS_IN_CODE):
            if inside == "(":
                self._close_or_go_on(")")
            else:
                self._at += 1

    def _close_or_go_on(self, end: str) -> None:
        is_end = self._script.startswith(end, self._at)
        if is_end:
            self._inside.pop()
        self._at += len(end) if is_end else 1

    def _has_opened(self, tokens: tuple[str, ...]) -> bool:
        for token in tokens:
            if self._script.startswith(token, self._at):
                self._inside.append(_OPENS[token])
                self._at += len(token)
                return True
        return False

    def _pass_documents(self) -> None:
        for delimiter in self._documents:
            line = re.compile(rf"^\t*{re.escape(delimiter)}$", re.MULTILINE).search(self._script, self._at)
            self._pass(line.end() if line else len(self._script))
        self._documents.clear()

    def _pass(self, end: int) -> None:
        """Go to `end` over text in which no field is a word."""
        self._answers.extend([False] * self._script.count("\0", self._at, end))
        self._at = end


logger = logging.getLogger(__name__)

#: How much of each captured stream is kept (its end): more than any log that a person reads, and a node whose 64 slots
#: all reach it still needs only some GiB. More than this belongs in a file.
CAPTURE_LIMIT_BYTES = 16 * 1024 * 1024

#: From TERM to KILL: enough for a trap that removes temporary files, short enough to hand on the slot.
#: (`docker stop` waits 10 s and Slurm's KillWait 30 s; those end whole services.)
KILL_AFTER_S = 2.0

#: How long background processes may go on when the command itself has ended. bash does not wait for `>(tee log)`, which
#: ends by itself within milliseconds; killed at once, it would lose its last lines.
LINGER_S = 1.0

#: How long a killed process may take to vanish. One that is stuck in the kernel (a dead network file system) may never
#: do so, and must not take its worker with it.
VANISH_S = 5.0

#: How much of a stream an error carries.
TAIL_BYTES = 64 * 1024

#: What a pipe holds by default; a buffer of 1 MiB costs two system calls more (it is mapped).
_READ_BYTES = 64 * 1024
#: The largest pipe that an ordinary user can make: one read of this size empties any pipe.
_LARGEST_PIPE_BYTES = 1024 * 1024

#: A poll cannot wait for longer than 24 days.
_LONGEST_POLL_S = 86_400.0

OPEN_FLAGS = {
    kind + suffix: os.O_WRONLY | os.O_CREAT | flag
    for kind, flag in (("w", os.O_TRUNC), ("a", os.O_APPEND), ("x", os.O_EXCL))
    for suffix in ("", "b", "t", "+", "b+", "+b", "t+", "+t")
}


class Capture:
    """A stream that is kept: a pipe, read while the command runs, and the end of what came.

    A pipe and not a temporary file: it can fill neither memory nor disk, and costs no more. The write end stays open
    here too, so that the pipe never ends: the end of the command is one event, not three that wake us one by one.
    """

    path: str | None = None

    def __init__(self) -> None:
        self.is_truncated = False
        self._kept = bytearray()
        self.read_fd, self.write_fd = os.pipe()

    def read(self, limit: int) -> None:
        """Take what is in the pipe; it must not be empty."""
        self._kept += os.read(self.read_fd, limit)
        # Only now and then: byte by byte, the whole text would be moved each time.
        if len(self._kept) > CAPTURE_LIMIT_BYTES + _LARGEST_PIPE_BYTES:
            self._cut()

    def text(self) -> str:
        if len(self._kept) > CAPTURE_LIMIT_BYTES:
            self._cut()
        return _decoded(self._kept, is_cut=self.is_truncated)

    def tail(self) -> str:
        return _decoded(self._kept[-TAIL_BYTES:], is_cut=self.is_truncated or len(self._kept) > TAIL_BYTES)

    def _cut(self) -> None:
        del self._kept[:-CAPTURE_LIMIT_BYTES]
        self.is_truncated = True

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class File:
    """A stream that goes to a file; the command writes there itself."""

    is_truncated = False

    def __init__(self, name: str, path: str, mode: str) -> None:
        self.path = path
        try:
            self.write_fd = os.open(path, OPEN_FLAGS[mode], 0o666)
        except FileNotFoundError:
            why = f"bash(): the directory of {name} does not exist on {host()}, and none is created"
            raise FileNotFoundError(errno.ENOENT, why, path) from None
        #: Where this command's output begins; before it is that of others.
        self._start = os.fstat(self.write_fd).st_size

    def text(self) -> None:
        """Nothing: who asked for a file reads the file."""

    def tail(self) -> str:
        # For an error's message only: it matters more than why the file (moved, or no file at all) cannot be read.
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                return ""
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                start = max(min(self._start, size), size - TAIL_BYTES)
                file.seek(start)
                return _decoded(file.read(TAIL_BYTES), is_cut=start > self._start)
        except OSError:
            return ""

    def close(self) -> None:
        os.close(self.write_fd)


Stream: TypeAlias = Capture | File


class Ended(NamedTuple):
    """How a command ended."""

    #: Negative: the signal that ended it.
    returncode: int
    wall_s: float
    cpu_s: float


def host() -> str:
    return os.uname().nodename


@functools.lru_cache(maxsize=8)
def _bash_on(search_path: str) -> str:
    for directory in [*search_path.split(os.pathsep), "/bin"]:
        candidate = os.path.join(directory, "bash")
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    why = f"bash(): there is no bash on {host()}; install it, or give the command as a list, which needs no shell"
    raise FileNotFoundError(errno.ENOENT, why)


class Running:
    """One command while it runs: its process group, and the pipes that are read meanwhile."""

    def __init__(self, stdout: Stream, stderr: Stream) -> None:
        self._stdout = stdout
        self._stderr = stderr
        # Made before it is started: an interrupt in the middle of the start must not lose the process.
        self._process: subprocess.Popen[bytes] = subprocess.Popen.__new__(subprocess.Popen)
        self._poll = select.poll()
        #: By the descriptor that is read; all are registered.
        self._captures = {stream.read_fd: stream for stream in (stdout, stderr) if isinstance(stream, Capture)}
        for fd in self._captures:
            self._poll.register(fd, select.POLLIN)

    def run(
        self, command: str | tuple[str, ...], cwd: str | None, env: dict[str, str] | None, timeout_s: float | None
    ) -> Ended | None:
        """Run text with bash, or arguments as a program, and wait for the end; None if the time was up first."""
        exit_fd = -1
        try:
            started_at = time.perf_counter()
            self._start(command, cwd, env)
            exit_fd = _exit_fd(self._process.pid)
            if self._have_ended([exit_fd], timeout_s):
                return self._finish(time.perf_counter() - started_at)
            self._terminate(exit_fd)
            self._kill()
            return None
        except BaseException:
            self._kill()
            raise
        finally:
            if exit_fd >= 0:
                os.close(exit_fd)

    def _start(self, command: str | tuple[str, ...], cwd: str | None, env: dict[str, str] | None) -> None:
        """Start the command in a process group of its own.

        Its session stays the worker's, so that whoever ends the session of a dead worker ends the command too.
        """
        argv = ("bash", "-c", command) if isinstance(command, str) else command
        bash = _bash_on(os.environ.get("PATH", os.defpath)) if isinstance(command, str) else None
        try:
            # Nothing here may keep subprocess from vfork (a preexec_fn, another user would): to fork a worker that
            # holds gigabytes takes milliseconds.
            self._process.__init__(  # type: ignore[misc]
                argv,
                executable=bash,
                stdin=subprocess.DEVNULL,
                stdout=self._stdout.write_fd,
                stderr=self._stderr.write_fd,
                cwd=cwd,
                env=env,
                process_group=0,
            )
        except FileNotFoundError:
            why = f"bash(): no such program on {host()}; install it there, or give its full path"
            raise FileNotFoundError(errno.ENOENT, why, argv[0]) from None
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            why = "bash(): the command and its environment are too long for the system; pass long lists in a file"
            raise OSError(errno.E2BIG, why) from None

    def _finish(self, wall_s: float) -> Ended:
        returncode, cpu_s = self._reap()
        group = self._process.pid
        if _has_signalled_group(group, 0):
            with contextlib.closing(_Family(p for p in _processes() if p.group == group)) as rest:
                self._have_ended(rest.exit_fds, LINGER_S)
            _has_signalled_group(group, signal.SIGKILL)
        self._read_rest()
        return Ended(returncode, wall_s, cpu_s)

    def _terminate(self, exit_fd: int) -> None:
        """Ask the command and its descendants to end, and wait until they have, or had their time."""
        group = self._process.pid
        with contextlib.closing(_Family(_descendants(group))) as family:
            _has_signalled_group(group, signal.SIGTERM)
            family.signal_outside(group, signal.SIGTERM)
            self._have_ended([exit_fd, *family.exit_fds], KILL_AFTER_S)
            family.signal_outside(group, signal.SIGKILL)

    def _kill(self) -> None:
        """End what is left, at once. Descendants outside the group are found only while the leader is there."""
        group: int | None = getattr(self._process, "pid", None) or self._lost_child()
        if group is None:  # it was never started
            return
        if self._process.returncode is not None:
            _has_signalled_group(group, signal.SIGKILL)
            return
        try:
            # Stopped, it starts nothing while its descendants are looked for.
            _has_signalled_group(group, signal.SIGSTOP)
            with contextlib.closing(_Family(_descendants(group))) as family:
                family.signal_outside(group, signal.SIGKILL)
        finally:
            _has_signalled_group(group, signal.SIGKILL)
        self._reap_killed()
        self._read_rest()

    def _lost_child(self) -> int | None:
        """The child whose number was lost: a signal handler can raise after the fork, before the number is kept.

        No rare case: the whole start of a program (a millisecond) is one call, and a signal has to wait for its end.
        """
        streams = [os.fstat(self._stdout.write_fd), os.fstat(self._stderr.write_fd)]
        for process in _processes():
            if process.parent == os.getpid() and process.group == process.pid:
                with contextlib.suppress(FileNotFoundError, PermissionError):  # it ended meanwhile
                    theirs = [os.stat(f"/proc/{process.pid}/fd/{fd}") for fd in (1, 2)]
                    if all(map(os.path.samestat, theirs, streams)):
                        self._process.pid = process.pid
                        return process.pid
        return None

    def _reap(self) -> tuple[int, float]:
        try:
            _, status, usage = os.wait4(self._process.pid, 0)
        except ChildProcessError:
            self._process.returncode = 0  # Nobody can tell; without a number subprocess would wait for it again.
            why = "bash(): the command's exit code was taken by something else in the worker (is SIGCHLD ignored?)"
            raise ChildProcessError(errno.ECHILD, why) from None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode, usage.ru_utime + usage.ru_stime

    def _reap_killed(self) -> None:
        exit_fd = _exit_fd(self._process.pid)
        try:
            if self._have_ended([exit_fd], VANISH_S):
                self._reap()
            else:
                logger.warning("bash pid=%d is killed but does not end: stuck in the kernel", self._process.pid)
        finally:
            os.close(exit_fd)

    def _have_ended(self, exit_fds: Sequence[int], timeout_s: float | None) -> bool:
        """Read what comes until all `exit_fds` are readable; False if the time is up first."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        waiting = set(exit_fds)
        for fd in waiting:
            self._poll.register(fd, select.POLLIN)
        try:
            while waiting:
                remaining_s = None if deadline is None else deadline - time.monotonic()
                if remaining_s is not None and remaining_s <= 0:
                    return False
                ready = self._poll.poll(None if remaining_s is None else min(remaining_s, _LONGEST_POLL_S) * 1000)
                for fd, _ in ready:
                    if fd in waiting:
                        waiting.remove(fd)
                        self._poll.unregister(fd)
                    else:
                        self._captures[fd].read(_READ_BYTES)
            return True
        finally:
            for fd in waiting:
                self._poll.unregister(fd)

    def _read_rest(self) -> None:
        """Read what is in the pipes now, once: a daemon that left the group may go on writing."""
        if self._captures:
            for fd, _ in self._poll.poll(0):
                self._captures[fd].read(_LARGEST_PIPE_BYTES)


class _Process(NamedTuple):
    """What `/proc/<pid>/stat` tells."""

    pid: int
    parent: int
    group: int


class _Family:
    """Some processes of a command, held by pidfds where there are any, so that none is mistaken for another."""

    def __init__(self, processes: Iterable[_Process]) -> None:
        self._held: list[tuple[_Process, int | None]] = []
        for process in processes:
            try:
                self._held.append((process, _pidfd(process.pid)))
            except ProcessLookupError:  # it ended meanwhile
                continue

    @property
    def exit_fds(self) -> list[int]:
        """Each becomes readable when its process ends; none without pidfds: then there is nothing to wait on."""
        return [fd for _, fd in self._held if fd is not None]

    def signal_outside(self, group: int, number: int) -> None:
        """Send a signal to the processes that made a group of their own (`timeout`, `setsid`, `set -m`)."""
        for process, fd in self._held:
            if process.group == group:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if fd is None:
                    os.kill(process.pid, number)
                else:
                    signal.pidfd_send_signal(fd, number)

    def close(self) -> None:
        for fd in self.exit_fds:
            os.close(fd)


def _has_signalled_group(group: int, number: int) -> bool:
    """Send a signal to a process group (0: only look); False if it has no members, or only those of other users."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _descendants(pid: int) -> list[_Process]:
    """The members of a command's group, and its descendants in other groups; not its leader."""
    processes = [process for process in _processes() if process.pid != pid]
    family: dict[int, _Process] = {}
    while found := [p for p in processes if p.pid not in family and (p.group == pid or p.parent in {pid, *family})]:
        family.update((process.pid, process) for process in found)
    return list(family.values())


def _processes() -> Iterator[_Process]:
    """All processes that can be seen; none where there is no /proc."""
    try:
        pids = [name for name in os.listdir("/proc") if name.isdecimal()]
    except FileNotFoundError:
        return
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The name of the program comes before, in parentheses; it may contain anything.
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended meanwhile, or is hidden
            continue
        yield _Process(int(pid), int(fields[1]), int(fields[2]))


def _pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the system has no such thing."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):  # an old kernel, not Linux, forbidden in a container
        return None


def _exit_fd(child: int) -> int:
    """A descriptor that becomes readable when the child ends, which reaps nothing."""
    with contextlib.suppress(ProcessLookupError):  # reaped by somebody else: to be told by whoever waits for it
        pidfd = _pidfd(child)
        if pidfd is not None:
            return pidfd
    read_fd, write_fd = os.pipe()

    def watch() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        os.close(write_fd)

    threading.Thread(target=watch, name="hpcpool-bash-exit", daemon=True).start()
    return read_fd


def _decoded(data: bytes | bytearray, *, is_cut: bool) -> str:
    """UTF-8 text, without what is left of a character that the cut went through."""
    begin = 0
    while is_cut and begin < min(3, len(data)) and data[begin] & 0xC0 == 0x80:
        begin += 1
    return str(memoryview(data)[begin:], "utf-8", "replace")  # a view: no second copy of 16 MiB


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
            timeout_s=_checked_timeout_s(timeout),
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
    #: The absolute paths of `outputs`, in order.
    outputs: tuple[str, ...]

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
    command = call.as_run()
    directory = _directory(call.cwd)
    outputs = _absolute_paths("outputs", call.outputs, directory)
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
        stdout_path=stdout.path,
        stderr_path=stderr.path,
        stdout_truncated=stdout.is_truncated,
        stderr_truncated=stderr.is_truncated,
        wall_s=ended.wall_s,
        cpu_s=ended.cpu_s,
        outputs=outputs,
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


def _checked_timeout_s(timeout: object) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real):
        raise TypeError(f"bash(): timeout is a number of seconds or None, not {timeout!r}")
    timeout_s = float(timeout)
    if not timeout_s > 0:
        raise ValueError(f"bash(): timeout is more than 0 seconds, or None for no limit, not {timeout!r}")
    return timeout_s


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
            paths.extend(value.outputs)
        else:
            paths.append(_absolute(directory, _path(name, value)))
    return tuple(paths)


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
    if missing := [path for path in paths if not os.path.exists(path)]:
        raise FileNotFoundError(errno.ENOENT, f"bash(): not run, inputs missing on {host()}: {quoted_names(missing)}")


def _require_outputs(command: str | tuple[str, ...], paths: tuple[str, ...]) -> None:
    if missing := tuple(path for path in paths if not os.path.exists(path)):
        raise MissingOutputs(
            f"bash command succeeded on {host()} but did not make {quoted_names(missing)}: {_brief(command)}",
            missing=missing,
        )


def _environment(env: object) -> dict[str, str] | None:
    """The command's whole environment; None to inherit the worker's, which is faster than a copy."""
    if not env:
        return None
    _check_env(env)
    assert isinstance(env, Mapping)
    changed = {**os.environ, **{name: text_of(value) for name, value in env.items() if value is not None}}
    return {name: value for name, value in changed.items() if name not in env or env[name] is not None}


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
        return f"was ended by {_signal_name(-returncode)}"
    hint = ""
    if isinstance(command, str):
        if returncode == 126:
            hint = " (bash: a program cannot be executed)"
        elif returncode == 127:
            hint = " (bash: a program was not found)"
        elif 128 < returncode < 128 + signal.NSIG:
            hint = f" (bash: {_signal_name(returncode - 128)} ended a program)"
    return f"failed with exit code {returncode}{hint}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


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
