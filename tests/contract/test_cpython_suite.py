"""CPython's own tests of ProcessPoolExecutor, each as a test of its own, with HPCPoolExecutor in its place."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.contract import exclusions, locate, suite
from tests.contract.proxies import ProxyServer
from tests.contract.watchdog import time_limit

pytestmark = pytest.mark.contract

#: The slowest tests of the suite sleep for six seconds; the rest of this is for a busy machine.
LIMIT_S = 60.0

SUITE = locate.find()
MODULES = suite.load(SUITE) if SUITE else []
TESTS = suite.process_pool_tests(MODULES)


@pytest.fixture(scope="module", autouse=True)
def adapted_suite() -> Iterator[None]:
    server = ProxyServer()
    suite.adapt(MODULES, server)
    yield
    server.close()


def test_the_suite_is_installed() -> None:
    if SUITE is None:
        # A skipped contract must not pass for a kept one where it counts.
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(locate.ADVICE)


@pytest.mark.skipif(SUITE is None, reason="no suite")
@pytest.mark.parametrize("mixin", suite.MIXINS)
def test_every_start_method_is_tested(mixin: str) -> None:
    classes = [type(test) for test in TESTS.values()]
    assert len([made for made in classes if mixin in {base.__name__ for base in made.__mro__}]) > 50


@pytest.mark.skipif(SUITE is None, reason="no suite")
@pytest.mark.parametrize("exclusion", exclusions.EXCLUSIONS, ids=lambda exclusion: exclusion.pattern)
def test_every_exclusion_is_of_a_real_test(exclusion: exclusions.Exclusion) -> None:
    assert SUITE is not None
    if SUITE.version < exclusion.since or not exclusion.is_needed:
        pytest.skip("not for this suite on this Python")
    assert any(exclusion.matches(name) for name in TESTS)


# The suite's own Manager of the fork context forks this process, which has threads: a warning since Python 3.12.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("name", TESTS)
def test_contract(name: str) -> None:
    if exclusion := exclusions.exclusion_of(name):
        pytest.skip(f"excluded: {exclusion.reason}")
    with time_limit(LIMIT_S):
        outcome = suite.run(TESTS[name])
    if outcome.problem:
        pytest.fail(outcome.problem, pytrace=False)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
