"""Loads CPython's suite, puts HPCPoolExecutor in it, lists its tests and runs one; it knows no test by name."""

from __future__ import annotations

import atexit
import concurrent.futures
import importlib
import shutil
import sys
import tempfile
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import ModuleType
from unittest import mock

from tests.contract import proxies, shim
from tests.contract.locate import Suite

NAME = "test.test_concurrent_futures"
#: The suite's mixins that choose an executor; a test class without one is not about process pools.
MIXINS = ("ProcessPoolForkMixin", "ProcessPoolForkserverMixin", "ProcessPoolSpawnMixin")
#: Test classes about process pools that make their executors through other test classes.
WITHOUT_MIXIN = ("FailingInitializerResourcesTest",)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a test went: `problem` and `skipped` are texts, empty where there is nothing to say."""

    problem: str
    skipped: str


def load(suite: Suite) -> list[ModuleType]:
    """The modules of the suite, imported from where they are installed."""
    sys.path.insert(0, str(import_directory(suite)))
    names = [NAME]
    if suite.has_submodules:
        folder = suite.package / "test_concurrent_futures"
        names = [f"{NAME}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    return [importlib.import_module(name) for name in names]


def import_directory(suite: Suite) -> Path:
    """A directory in which there is nothing but the suite's `test` package.

    The folder that holds it cannot be used: it is a whole standard library, maybe of another Python. And changing
    `test.__path__` would do for this process but not for workers, which get its `sys.path`.
    """
    # Not a TemporaryDirectory: a forked child of multiprocessing would collect, and so remove, its copy of that.
    directory = Path(tempfile.mkdtemp(prefix="cpython-suite-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    (directory / "test").symlink_to(suite.package, target_is_directory=True)
    return directory


def adapt(modules: list[ModuleType], server: proxies.ProxyServer) -> None:
    """Puts our executor, contexts and scripts in the place of the stdlib's, for all tests of the suite."""
    for mixin in mixins(modules):
        mixin.executor_type = shim.ProcessPoolExecutor
        mixin.get_context = lambda test: proxies.context(test.ctx, server)
    for module in modules:
        if hasattr(module, "assert_python_ok"):
            module.assert_python_ok = with_preamble(module.assert_python_ok)


def with_preamble(assert_python_ok: Callable[..., object]) -> Callable[..., object]:
    """The suite's runner of scripts; the script finds our executor under the stdlib's name, and `multiprocessing`.

    The scripts are run without any environment, so this is the only way in. hpcpool is imported before the script's
    first line, which is the harder case for what must happen at exit. One script uses `multiprocessing` unimported.
    """
    preamble = (
        f"import sys; sys.path[:0] = {[path for path in sys.path if path] + [str(ROOT)]!r}\n"
        "import concurrent.futures, hpcpool, multiprocessing\n"
        "concurrent.futures.ProcessPoolExecutor = hpcpool.HPCPoolExecutor\n"
    )

    def run_script(option: str, code: str, **environment: str) -> object:
        return assert_python_ok(option, preamble + code, **environment)

    return run_script


def mixins(modules: list[ModuleType]) -> Iterator[type]:
    found = {getattr(module, name) for module in modules for name in MIXINS if hasattr(module, name)}
    yield from sorted(found, key=lambda mixin: mixin.__name__)


def process_pool_tests(modules: list[ModuleType]) -> dict[str, unittest.TestCase]:
    """Every test about process pools by its id `Class.test_name`."""
    chosen = tuple(mixins(modules))
    tests: dict[str, unittest.TestCase] = {}
    for module in modules:
        for case in unittest.defaultTestLoader.loadTestsFromModule(module):
            for test in case:
                if isinstance(test, chosen) or type(test).__name__ in WITHOUT_MIXIN:
                    tests[test_id(test)] = test
    return tests


def test_id(test: unittest.TestCase) -> str:
    return f"{type(test).__name__}.{test._testMethodName}"


def run(test: unittest.TestCase) -> Outcome:
    """Runs one test. Its module's clean-up is not run: it also ends what pytest's run has registered for its end."""
    support = sys.modules["test.support"]
    result = unittest.TestResult()
    complaints: list[str] = []
    with (
        mock.patch.object(concurrent.futures, "ProcessPoolExecutor", shim.InPlaceOfStdlib),
        mock.patch.object(support, "print_warning", complaints.append),
    ):
        test.run(result)
    stop_helpers()
    # The suite's own look at threads is left out: in 3.11 it also counts those that have just ended.
    problems = [text for _, text in result.errors + result.failures]
    problems += [f"not waited for: {text}" for text in complaints if text.startswith("reap_children")]
    return Outcome("\n".join(problems), "; ".join(reason for _, reason in result.skipped))


def stop_helpers() -> None:
    """Ends the processes that multiprocessing keeps, as the suite's modules do: a test waits for the end of one."""
    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()
