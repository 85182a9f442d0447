"""The Python that runs managers and workers on another machine: one that is there, or a private environment made there.

An environment is made once for each version, in `~/.hpcpool/envs`, and stays. It appears at once and whole, so machines
with one home directory do not disturb each other.
"""

from __future__ import annotations

import logging
import posixpath
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hpcpool.errors import ConfigError, SSHError
from hpcpool.providers.commands import CommandResult, Runner
from hpcpool.providers.ssh.wheel import REQUIREMENTS, Wheel, own_wheel
from hpcpool.wire.version import VERSION

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 60.0
#: On a slow shared file system.
_VENV_TIMEOUT_S = 300.0
_PIP_TIMEOUT_S = 900.0

#: Says what a Python is and has. It is read from stdin by a Python that may be of any version 3.
_PROBE = """\
import sys
found = ["%d.%d" % sys.version_info[:2]]
for name, attribute in ("hpcpool.wire.version", "VERSION"), ("cloudpickle", "__version__"):
    try:
        found.append(getattr(__import__(name, fromlist=["x"]), attribute))
    except Exception:
        found.append("-")
print(" ".join(found))
"""
_NO_INDEX = re.compile("No matching distribution|Could not find a version|Failed to establish|Connection|timed out|SSL")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a Python is and has; "-": it has not."""

    python: str
    hpcpool: str
    cloudpickle: str

    def fits(self, other: Contents) -> bool:
        """True if processes of the two understand each other."""
        majors = (self.cloudpickle.partition(".")[0], other.cloudpickle.partition(".")[0])
        return (self.python, self.hpcpool) == (other.python, other.hpcpool) and majors[0] == majors[1]

    def __str__(self) -> str:
        has = [f"{name} {version}" for name, version in self._packages if version != "-"]
        return f"Python {self.python} with {' and '.join(has) or 'neither hpcpool nor cloudpickle'}"

    @property
    def _packages(self) -> tuple[tuple[str, str], ...]:
        return ("hpcpool", self.hpcpool), ("cloudpickle", self.cloudpickle)


def needed() -> Contents:
    """What the other side must be and have to understand this one."""
    return Contents("{}.{}".format(*sys.version_info[:2]), VERSION, metadata.version("cloudpickle"))


def read_probe(text: str) -> Contents | None:
    """What `_PROBE` said; None: it is not a Python that can say it."""
    found = re.fullmatch(r"(3\.[0-9]+) (\S+) (\S+)\n", text)
    return Contents(*found.groups()) if found else None


@dataclass(frozen=True)
class NodePython:
    """Which Python the nodes of a provider have.

    Args:
        python: the path of an interpreter there, which has what it needs; None: see `find`.
        wheels: a folder here with wheels of all that hpcpool needs, for machines that reach no package index.
        pip_options: more options for `pip install`.
        here: the path of this program's Python, which may mean the same there (a shared file system).
    """

    python: str | None = None
    wheels: str | None = None
    pip_options: Sequence[str] = ()
    here: str = sys.executable

    def find(self, runner: Runner, where: str) -> str:
        """Return the path of a Python there that fits, and make an environment for it if there is none.

        It is the one that was given, or the one of this program where that is there and fits, or the environment.

        Raises:
            SSHError: there is none and it cannot be made; with what to do.
            OSError: the machine cannot be asked.
            ConfigError: `wheels` is no folder.
        """
        if self.python is not None:
            return self._given(runner, where, self.python)
        if _fits(_contents(runner, self.here)):
            return self.here
        wheel = own_wheel()
        version = needed().python
        folder = posixpath.join(runner.home(), ".hpcpool", "envs", f"{VERSION}-{wheel.digest}-python{version}")
        python = posixpath.join(folder, "bin", "python")
        if not _fits(_contents(runner, python)):
            self._make(runner, where, folder, wheel)
        return python

    def _given(self, runner: Runner, where: str, python: str) -> str:
        contents = _contents(runner, python)
        if not _fits(contents):
            raise SSHError(
                f"{python} on {where} {_does_not_fit(contents)}. Install hpcpool {VERSION} and cloudpickle "
                f"{needed().cloudpickle} for it, or leave `python` out: then an environment is made there"
            )
        return python

    def _make(self, runner: Runner, where: str, folder: str, wheel: Wheel) -> None:
        files = {wheel.name: wheel.content, **self._own_wheels()}
        base = self._base(runner, where)
        logger.info("%s has no hpcpool %s: an environment is made in %s", where, VERSION, folder)
        new = f"{folder}.{uuid.uuid4().hex[:12]}"
        try:
            made = runner.run((base, "-m", "venv", new), timeout_s=_VENV_TIMEOUT_S)
            if made.code != 0:
                raise SSHError(
                    f"{base} on {where} cannot make an environment ({made.words}). Its module venv is needed (Debian: "
                    "apt-get install python3-venv); or name a Python with hpcpool: python='/path/on/the/machine'"
                )
            self._install(runner, where, new, files)
            # Only one of several that were made at the same time gets the name; all of them are the same.
            runner.run(("mv", "-T", new, folder), timeout_s=_PROBE_TIMEOUT_S)
        finally:
            runner.remove_folder(new)
        contents = _contents(runner, posixpath.join(folder, "bin", "python"))
        if not _fits(contents):
            raise SSHError(f"the environment in {folder} on {where} {_does_not_fit(contents)}; remove it")

    def _base(self, runner: Runner, where: str) -> str:
        """A Python there of the same minor version as this one."""
        version = needed().python
        seen = []
        for python in (self.here, f"python{version}", "python3"):
            contents = _contents(runner, python)
            if contents is not None and contents.python == version:
                return python
            if contents is not None:
                seen.append(f"{python} is {contents.python}")
        others = f" ({', '.join(seen)})" if seen else ""
        raise SSHError(
            f"there is no Python {version} on {where}{others}, and it must be the same as here. "
            f"Install python{version} there, or name one that has hpcpool: python='/path/on/the/machine'"
        )

    def _install(self, runner: Runner, where: str, environment: str, files: Mapping[str, bytes]) -> None:
        """Install the first of these wheels; the others are what it needs."""
        folder = posixpath.join(environment, "wheels")
        runner.write_files(folder, files)
        sources = ("--no-index", "--find-links", folder) if self.wheels is not None else ()
        pip = (posixpath.join(environment, "bin", "python"), "-m", "pip", "install", "--quiet")
        quiet = ("--disable-pip-version-check", "--no-input")
        done = runner.run(
            (*pip, *quiet, *sources, *self.pip_options, posixpath.join(folder, next(iter(files)))),
            timeout_s=_PIP_TIMEOUT_S,
        )
        if done.code != 0:
            raise SSHError(f"hpcpool cannot be installed on {where}: {_pip_problem(done)}")

    def _own_wheels(self) -> dict[str, bytes]:
        if self.wheels is None:
            return {}
        folder = Path(self.wheels).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"wheels is {self.wheels!r}, which is no folder here")
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*.whl"))}


def _contents(runner: Runner, python: str) -> Contents | None:
    """What a Python there is and has; None: it is not there."""
    done = runner.run((python, "-"), timeout_s=_PROBE_TIMEOUT_S, stdin=_PROBE)
    if done.was_not_started and "cannot be run" not in done.stderr:
        raise SSHError(done.stderr)
    return read_probe(done.stdout) if done.code == 0 else None


def _fits(contents: Contents | None) -> bool:
    return contents is not None and contents.fits(needed())


def _does_not_fit(contents: Contents | None) -> str:
    return "is not there" if contents is None else f"is {contents}, and this program {needed()}"


def _pip_problem(done: CommandResult) -> str:
    """What pip says, and what to do."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.words]
    advice = "see what pip says"
    if _NO_INDEX.search(done.stderr):
        advice = (
            "if the machine reaches no package index, name a mirror that it reaches (pip_options=['--index-url', "
            "'https://...']), or download the wheels here "
            f"(`pip download -d wheels {' '.join(_pins())}`) and give wheels='wheels'"
        )
    return f"{' '.join(lines)}; {advice}"


def _pins() -> list[str]:
    return [f"{name}=={metadata.version(name)}" for name in REQUIREMENTS]
