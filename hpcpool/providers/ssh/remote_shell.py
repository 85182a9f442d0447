"""Commands as one line for the shell of another machine, and what came back as a result; pure.

The shell may be any (sh, csh, ...), and its start-up files may print something. So the line only starts `sh`, which
says that it begins, on both outputs: what is in front is not the command's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hpcpool.providers.commands import CommandResult

#: Printed before the command starts.
_BEGIN = "--hpcpool-begin--"
#: In front of the command where the machine has `timeout`; else `sh` drops these words (4 of them).
_LIMIT = "timeout -k 5"
#: How a shell tells that a signal ended a command: 128 and its number.
_SIGNALS = range(129, 129 + 64)
_NOT_RUN = re.compile(
    r"(?:timeout: failed to run command [^:]*|(?:\S*sh|exec): (?:\d+: |line \d+: )?[^:]*): (?P<why>.*)"
)


def command_line(argv: Sequence[str], *, limit_s: float, login_shell: bool = False) -> str:
    """The line that runs a command in the C locale, with its arguments as they are (csh knows no line breaks in them).

    Args:
        limit_s: after this many seconds the machine itself ends the command, so that one that nobody waits for any
            more does not stay.
        login_shell: read the start-up files of a login first.
    """
    script = (
        f"LC_ALL=C; export LC_ALL; echo {_BEGIN}; echo {_BEGIN} >&2; "
        'command -v timeout >/dev/null 2>&1 || shift 4; "$@"; exit $?'
    )
    words = ["sh", "-c", script, "sh", *_LIMIT.split(), f"{limit_s:.0f}", *argv]
    if login_shell:
        words = ["bash", "-lc", 'exec "$@"', "bash", *words]
    return f"exec {' '.join(map(_quoted, words))}"


def _quoted(word: str) -> str:
    """The word for any shell: csh takes an exclamation mark for a reference to its history, even between quotes."""
    return shlex.quote(word).replace("!", "'\\!'")


def own_output(text: str) -> str:
    """What the command itself printed."""
    before, begin, after = text.partition(f"{_BEGIN}\n")
    return after if begin else before


def result_of(argv: Sequence[str], code: int, stdout: str, stderr: str, where: str) -> CommandResult:
    """The result of a command that has ended with this code."""
    stdout, stderr = own_output(stdout), own_output(stderr)
    if code in (126, 127) and (found := _NOT_RUN.fullmatch(stderr.strip())):
        reason = f"{argv[0]} cannot be run on {where}: {found['why']}"
        return CommandResult(tuple(argv), None, "", reason, was_not_started=True)
    return CommandResult(tuple(argv), 128 - code if code in _SIGNALS else code, stdout, stderr)
