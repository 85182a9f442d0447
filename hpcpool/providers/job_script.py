"""Job scripts of systems that read directives at their top, and the job id that their submit command prints."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from hpcpool.providers.base import SubmitError
from hpcpool.providers.batch import JobRequest, SubmitUnclear
from hpcpool.providers.commands import CommandResult

#: The server may have taken the job, but its answer was lost.
_LOST_ANSWER = re.compile(r"[Cc]onnection (reset|timed out)|Broken pipe|End of File|[Cc]ommunication failure")


def job_script(prefix: str, directives: Iterable[str], options: str | Sequence[str], job: JobRequest) -> str:
    """Return a script that runs the job's lines in its folder.

    Args:
        prefix: what a directive's line begins with, such as "#PBS".
        directives: the lines that follow from the provider's options.
        options: the user's lines, complete with the prefix; they stand last, so they win where the system lets them.
        job: what to run.
    """
    lines = [f"{prefix} {directive}" for directive in directives]
    start = f"cd {shlex.quote(job.cwd)} || exit 1"
    return "\n".join(["#!/bin/bash", *lines, *options, "", start, job.body.rstrip("\n"), ""])


def quoted(value: str) -> str:
    """Return a value as one word of a directive: in double quotes if it needs any."""
    if re.fullmatch(r"[\w@%+=:,./~-]+", value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def submitted_id(result: CommandResult, form: re.Pattern[str], hints: Sequence[tuple[str, str]]) -> str:
    """Return the job id: the last line that has the form of one.

    Args:
        result: what the submit command said.
        form: what a line with a job id is; its first group is the id if it has one.
        hints: what to do about a refusal: a pattern of its words, and the advice.

    Raises:
        SubmitUnclear: the connection broke, or no id was printed.
        SubmitError: the job was refused.
    """
    if result.code == 0:
        if found := found_id(result, form):
            return found
        raise SubmitUnclear(f"the id of the job was not printed: {result.words}")
    if _LOST_ANSWER.search(result.words):
        raise SubmitUnclear(result.words)
    hint = next((hint for pattern, hint in hints if re.search(pattern, result.words)), None)
    raise SubmitError(f"{result.words} ({hint})" if hint else result.words)


def found_id(result: CommandResult, form: re.Pattern[str]) -> str | None:
    """Return the last line that has the form of a job id, if the command worked; its first group is the id."""
    if result.code != 0:
        return None
    matches = [match for line in result.stdout.splitlines() if (match := form.fullmatch(line.strip()))]
    return str(matches[-1][matches[-1].lastindex or 0]) if matches else None
