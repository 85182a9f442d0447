"""Commands of batch systems: how they are run, and what came of them. What they mean is not known here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command printed and how it ended."""

    argv: tuple[str, ...]
    #: Its exit code; negative: the signal that ended it; None: it could not be run or did not end in time.
    code: int | None
    stdout: str
    #: What it wrote to stderr or, with a code of None, why it has none.
    stderr: str
    #: With a code of None, True: it is certain that nothing was run. Else it may have done its work unseen.
    was_not_started: bool = False

    @property
    def is_cut_off(self) -> bool:
        """True when it did not come to its end, but may have done its work."""
        return not self.was_not_started if self.code is None else self.code < 0

    @property
    def words(self) -> str:
        """What it said when it failed, in one line: its stderr or else its stdout, or how it ended."""
        said = " ".join((self.stderr.strip() or self.stdout.strip()).split())
        return said or f"{self.argv[0]} ended with code {self.code} and said nothing"


class Runner(Protocol):
    """Where commands run and files are kept: this machine, or a login node. Used by one thread."""

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: str | None = None) -> CommandResult:
        """Run a command to its end, without a shell, in the C locale. Never raises: see `CommandResult.code`."""

    def home(self) -> str:
        """Return the user's home directory there, an absolute path; `OSError` if that cannot be found out."""

    def write_files(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Write files that only the user can read into a folder, which is made (with those above it) if need be.

        Raises:
            OSError: it could not be done.
        """

    def tail_of(self, path: str, most_bytes: int) -> str:
        """Return the end of a file as text; empty if it is not there or cannot be read."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and all that is in it; nothing happens if it is not there."""

    def close(self) -> None:
        """Let go of connections; a second call does nothing."""


class LocalRunner:
    """Runs commands on this machine."""

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: str | None = None) -> CommandResult:
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                stdin=None if stdin is not None else subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                env={**os.environ, "LC_ALL": "C"},
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            reason = error.strerror or str(error)
            return CommandResult(tuple(argv), None, "", f"{argv[0]} cannot be run: {reason}", was_not_started=True)
        except subprocess.TimeoutExpired:
            return CommandResult(tuple(argv), None, "", f"{argv[0]} did not answer within {timeout_s:g} s")
        return CommandResult(tuple(argv), done.returncode, done.stdout, done.stderr)

    def home(self) -> str:
        return os.path.expanduser("~")

    def write_files(self, folder: str, files: Mapping[str, bytes]) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for name, content in files.items():
            path = os.path.join(folder, name)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)

    def tail_of(self, path: str, most_bytes: int) -> str:
        try:
            with open(path, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
                return file.read(most_bytes).decode(errors="replace")
        except OSError:
            return ""

    def remove_folder(self, folder: str) -> None:
        import shutil  # only the end of a block needs it

        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """There is nothing to let go of."""
