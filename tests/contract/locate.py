"""Finds an installed copy of CPython's `test.test_concurrent_futures`; it copies nothing and runs nothing.

Distributions cut the test package out of the standard library as they like: some leave it in, some move it to a package
of its own, some drop single folders. So every `test` package on this machine is looked at, and the one of the Python
version that is nearest to the running one is taken.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Version = tuple[int, int]

#: The oldest suite that is still about the Pythons which hpcpool supports.
OLDEST: Version = (3, 11)

ADVICE = (
    "No installed Python has test.test_concurrent_futures. On Debian and Ubuntu: apt-get install "
    "libpython3.11-testsuite. With pyenv: install a Python with its tests, beside the one that runs this."
)


@dataclass(frozen=True)
class Suite:
    """A `test` package that holds `test_concurrent_futures`, and the Python version that it was written for."""

    package: Path
    version: Version

    @property
    def has_submodules(self) -> bool:
        """Whether the suite is a package of files (3.12 and newer) or a single file (3.11)."""
        return (self.package / "test_concurrent_futures").is_dir()


def find(running: Version = sys.version_info[:2]) -> Suite | None:
    """The suite of the running interpreter or else the nearest one; None where there is none."""
    return choose(installed(), running)


def choose(packages: Iterable[Path], running: Version) -> Suite | None:
    """The suite for the nearest version; a newer one before an older one, and the first of equals."""
    suites = [suite for package in packages if (suite := suite_in(package)) and suite.version >= OLDEST]
    return min(suites, key=lambda suite: distance(suite.version, running), default=None)


def distance(version: Version, running: Version) -> tuple[int, bool]:
    return abs(version[1] - running[1]), version < running


def suite_in(package: Path) -> Suite | None:
    version = re.search(r"python3\.(\d+)", str(package))
    has_suite = (package / "test_concurrent_futures.py").is_file() or (package / "test_concurrent_futures").is_dir()
    if version is None or not has_suite:
        return None
    return Suite(package, (3, int(version[1])))


def installed() -> Iterator[Path]:
    """Every `test` package on this machine: the running interpreter's first, then the system's, then its siblings'."""
    yield Path(sysconfig.get_path("stdlib"), "test")
    yield from sorted(Path("/usr/lib").glob("python3.*/test"))
    yield from sorted(Path("/usr/local/lib").glob("python3.*/test"))
    # pyenv and its like keep all interpreters side by side in one folder.
    yield from sorted(Path(sys.base_prefix).parent.glob("*/lib/python3.*/test"), reverse=True)
