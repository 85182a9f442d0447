"""Which copy of the suite is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import locate


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Path]:
    """`test` packages of 3.10, 3.11, 3.13 with the suite, and one of 3.12 without it."""
    made = {version: tmp_path / f"python{version}" / "test" for version in ("3.10", "3.11", "3.12", "3.13")}
    for package in made.values():
        package.mkdir(parents=True)
    (made["3.10"] / "test_concurrent_futures.py").touch()
    (made["3.11"] / "test_concurrent_futures.py").touch()
    (made["3.13"] / "test_concurrent_futures").mkdir()
    return made


@pytest.mark.parametrize(
    ("running", "expected"),
    [((3, 11), "3.11"), ((3, 13), "3.13"), ((3, 14), "3.13"), ((3, 12), "3.13")],
)
def test_the_nearest_suite_is_taken_and_of_two_the_newer(
    packages: dict[str, Path], running: locate.Version, expected: str
) -> None:
    suite = locate.choose(packages.values(), running)
    assert suite is not None
    assert suite.package == packages[expected]


def test_the_first_of_equal_suites_is_taken(packages: dict[str, Path], tmp_path: Path) -> None:
    second = tmp_path / "other" / "python3.13" / "test"
    second.mkdir(parents=True)
    (second / "test_concurrent_futures.py").touch()
    suite = locate.choose([second, packages["3.13"]], (3, 13))
    assert suite == locate.Suite(second, (3, 13))


def test_a_suite_older_than_hpcpool_supports_is_not_taken(packages: dict[str, Path]) -> None:
    assert locate.choose([packages["3.10"], packages["3.12"]], (3, 11)) is None
