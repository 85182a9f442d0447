"""What all batch systems have in common, as values: a job to ask for, and what a system must know about its commands.

Pure: text and argv in, text and values out. `batch_driver` runs the commands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hpcpool.providers.base import JobState, JobStatus, SubmitError
from hpcpool.providers.commands import CommandResult


class SubmitUnclear(SubmitError):
    """The submit command failed, but the job may have been accepted all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One job, in the words that all batch systems share."""

    #: Good for a job name everywhere: letters, digits, '-' and '_', the first a letter.
    name: str
    #: At least 1.
    nodes: int
    #: The shell lines that the job runs on its first node.
    body: str
    #: Absolute paths, as the nodes see them: the working directory, and the files for what the job prints.
    cwd: str
    stdout: str
    stderr: str
    #: Seconds; None: the batch system's default.
    walltime_s: float | None
    #: For each node; 0: not asked for. Memory in bytes.
    cores_per_node: int = 0
    memory_per_node: int = 0
    gpus_per_node: int = 0


class BatchSystem(Protocol):
    """One batch system with its options: the script, the commands and what their outputs mean. Holds no state.

    No method raises for what a command printed, but `parse_submit`: what cannot be understood is `JobState.UNKNOWN`.
    """

    def script(self, job: JobRequest) -> str:
        """Return the whole job script."""

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        """Return the command that submits a script."""

    def parse_submit(self, result: CommandResult) -> str:
        """Return the job's id.

        Raises:
            SubmitUnclear: the answer does not tell whether the job was accepted.
            SubmitError: it was refused; in the batch system's words, with what to do where that is known.
        """

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        """Return one command that tells about all of these jobs."""

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        """Return the states of the jobs that the command told about; those it did not name are left out.

        If the command failed as a whole, all of them are `JobState.UNKNOWN` with its words.
        """

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        """Return a command that tells how jobs ended that `status_command` does not name any more; None: there is none.

        Then a job that is not named has ended, and only the exit code that its script wrote tells more.
        """

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        """As `parse_status`. A job that is not named here either has ended; without a history, all have."""

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        """Return the command that ends jobs; with `force`, the one for jobs that have not ended when asked."""


@runtime_checkable
class JobSearch(Protocol):
    """What a `BatchSystem` has, too, where jobs can be found by name: after a submit command that did not answer."""

    def find_command(self, name: str) -> tuple[str, ...]:
        """Return the command that finds a job of this name."""

    def parse_find(self, name: str, result: CommandResult) -> str | None:
        """Return the id of the job of this name; None: it is not there, or the command failed."""


def all_unknown(job_ids: Sequence[str], words: str) -> Mapping[str, JobStatus]:
    """Return what is known of jobs when a command failed: nothing, and why."""
    return dict.fromkeys(job_ids, JobStatus(JobState.UNKNOWN, reason=words))


def with_hint(words: str, hints: Sequence[tuple[str, str]]) -> str:
    """Return the words of a refusal and what to do: of pairs of a pattern and advice, the first that fits."""
    hint = next((hint for pattern, hint in hints if re.search(pattern, words)), None)
    return words if hint is None else f"{words} ({hint})"
