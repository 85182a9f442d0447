"""The look at what tests leave behind finds it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CONFTEST = """
from tests import conftest
from tests.conftest import *
conftest.PATIENCE_S = (0.1, 0.1)
"""

TESTS = """
import multiprocessing, os, signal, subprocess, tempfile, threading
import pytest

kept = []
may_end = threading.Event()

def teardown_module():
    may_end.set()

def test_that_leaves_a_child():
    kept.append(subprocess.Popen(["sleep", "60"]))

@pytest.mark.live
def test_that_leaves_an_orphan():
    subprocess.run(["bash", "-c", "setsid sleep 60 >/dev/null 2>&1 &"])

def test_that_leaves_a_directory():
    os.mkdir(os.path.join(tempfile.gettempdir(), "hpcpool-run"))

def test_that_leaves_a_thread():
    threading.Thread(target=may_end.wait).start()

@pytest.mark.live
def test_that_is_clean(tmp_path):
    subprocess.run(["true"])
    (tmp_path / "hpcpool-mine").mkdir()
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        pool.map(abs, [1])

@pytest.fixture(scope="module")
def shared_pool():
    script = "while read; do sleep 60 & done; kill $(jobs -p); wait"
    with subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE) as pool:
        yield pool

@pytest.mark.live
def test_that_has_a_shared_pool_replace_a_worker(shared_pool):
    shared_pool.stdin.write(b"\\n")
    shared_pool.stdin.flush()
"""


@pytest.mark.live
def test_what_a_test_leaves_behind_fails_it_and_no_other(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-o", f"pythonpath={ROOT}", tmp_path]
    options = ["-p", "no:cacheprovider", "--rootdir", tmp_path]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=100)
    blamed = dict(re.findall(r"^_+ ERROR at teardown of (\w+) _+\nleft behind:\n(.*)$", done.stdout, re.MULTILINE))
    assert blamed.keys() == {
        "test_that_leaves_a_child",
        "test_that_leaves_an_orphan",
        "test_that_leaves_a_directory",
        "test_that_leaves_a_thread",
    }, done.stdout
    assert "sleep 60" in blamed["test_that_leaves_a_child"]
    assert "sleep 60" in blamed["test_that_leaves_an_orphan"]
    assert "hpcpool-run" in blamed["test_that_leaves_a_directory"]
    assert "thread" in blamed["test_that_leaves_a_thread"]
