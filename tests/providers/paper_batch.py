"""A batch system on paper: commands that change lists instead of machines. It tells the driver what a real one would.

`PaperMachine` is the runner: it runs `submit`, `status`, `history`, `find` and `cancel`, and keeps files in a dict.
`PaperSystem` knows what to say to it. No test is here.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hpcpool.providers import JobState, JobStatus, SubmitError
from hpcpool.providers.batch import JobRequest, SubmitUnclear
from hpcpool.providers.commands import CommandResult

Answer = Callable[[tuple[str, ...]], CommandResult]


@dataclass
class PaperMachine:
    """Runs commands, as they are told here; `now` is its clock."""

    now: float = 1000.0
    files: dict[str, bytes] = field(default_factory=dict)
    #: The lines that `status` and `history` print for each job: "state exit_code started ends reason".
    queue: dict[str, str] = field(default_factory=dict)
    past: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    #: What commands do instead, by their first word.
    instead: dict[str, Answer] = field(default_factory=dict)
    ran: list[tuple[str, ...]] = field(default_factory=list)
    is_full: bool = False
    is_closed: bool = False

    def clock(self) -> float:
        return self.now

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: str | None = None) -> CommandResult:
        command = tuple(argv)
        self.ran.append(command)
        return self.instead.get(command[0], self.obey)(command)

    def obey(self, command: tuple[str, ...]) -> CommandResult:
        """What the command does when all is well."""
        verb, *arguments = command
        if verb == "submit":
            return printed(command, f"{self.accept(arguments[0])}\n")
        if verb in ("status", "history"):
            known = self.queue if verb == "status" else self.past
            return printed(command, "".join(f"{job} {known[job]}\n" for job in arguments if job in known))
        if verb == "find":
            return printed(command, "".join(f"{job}\n" for job, name in self.names.items() if name == arguments[0]))
        assert verb == "cancel", command
        return printed(command, "")

    def accept(self, script_path: str) -> str:
        job_id = str(len(self.names) + 1)
        self.names[job_id] = self.files[script_path].decode().splitlines()[0].removeprefix("# ")
        self.queue[job_id] = "pending - - - Priority"
        return job_id

    def home(self) -> str:
        return "/home/user"

    def write_files(self, folder: str, files: Mapping[str, bytes]) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.files.update((posixpath.join(folder, name), content) for name, content in files.items())

    def tail_of(self, path: str, most_bytes: int) -> str:
        return self.files.get(path, b"")[-most_bytes:].decode()

    def remove_folder(self, folder: str) -> None:
        self.files = {path: content for path, content in self.files.items() if not path.startswith(f"{folder}/")}

    def close(self) -> None:
        self.is_closed = True

    def verbs(self) -> list[str]:
        """The first words of what was run since the last look."""
        verbs = [command[0] for command in self.ran]
        self.ran.clear()
        return verbs


@dataclass(frozen=True)
class ForgetfulSystem:
    """It has neither a history nor a search."""

    def script(self, job: JobRequest) -> str:
        if job.nodes > 9:
            raise SubmitError("there are 9 nodes")
        return f"# {job.name}\n# {job.walltime_s}\n{job.body}"

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        return ("submit", script_path)

    def parse_submit(self, result: CommandResult) -> str:
        if result.code != 0:
            raise SubmitError(result.words)
        if not result.stdout.strip().isdigit():
            raise SubmitUnclear(f"no number: {result.words}")
        return result.stdout.strip()

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        return ("status", *job_ids)

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        if result.code != 0:
            return {job_id: JobStatus(JobState.UNKNOWN, reason=result.words) for job_id in job_ids}
        return dict(map(read_line, result.stdout.splitlines()))

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        return None

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return self.parse_status(job_ids, result)

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        return ("cancel", *(["--force"] if force else []), *job_ids)


@dataclass(frozen=True)
class PaperSystem(ForgetfulSystem):
    """The same with a history and a search."""

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        return ("history", *job_ids)

    def find_command(self, name: str) -> tuple[str, ...]:
        return ("find", name)

    def parse_find(self, name: str, result: CommandResult) -> str | None:
        return result.stdout.strip() or None if result.code == 0 else None


def read_line(line: str) -> tuple[str, JobStatus]:
    job_id, state, code, started, ends, *words = line.split(" ")
    numbers = [None if text == "-" else int(text) for text in (code, started, ends)]
    status = JobStatus(JobState(state), numbers[0], " ".join(words), started_at=numbers[1], ends_at=numbers[2])
    return job_id, status


def printed(argv: Sequence[str], stdout: str) -> CommandResult:
    return CommandResult(tuple(argv), 0, stdout, "")


def failed(words: str, code: int | None = 1) -> Answer:
    """A command that does nothing but fail."""
    return lambda argv: CommandResult(argv, code, "", words)
