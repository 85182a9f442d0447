"""Blocks in real containers: Charliecloud and Podman, where they are installed and there is an image.

`HPCPOOL_TEST_IMAGE` names the image: the folder of a root file system with a Python of this version and without hpcpool
(`tests/testbed/make-image` makes one).
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcpool.containers import Container
from tests.testbed.machine import missing

IMAGE = os.environ.get("HPCPOOL_TEST_IMAGE", "")
PROGRAMS = {"charliecloud": "ch-run", "podman": "podman"}
PODMAN_IMAGE = "localhost/hpcpool-test"
NEEDED = ["hpcpool", "cloudpickle", "msgspec", "psutil", "tblib", "typing_extensions"]

pytestmark = pytest.mark.testbed


@pytest.fixture(scope="module")
def installation(tmp_path_factory) -> Path:
    """A folder with hpcpool and, beside it, what it needs, as pip installs them."""
    folder = tmp_path_factory.mktemp("site-packages")
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        if spec.submodule_search_locations:
            shutil.copytree(spec.submodule_search_locations[0], folder / name)
        else:
            shutil.copy(spec.origin, folder)
    return folder


@pytest.fixture(scope="module")
def podman_home() -> Iterator[Path]:
    """Where Podman keeps its images and settings, so that nothing of the tests stays with the user's."""
    folder = Path(tempfile.mkdtemp(prefix="podman-"))  # a short path: sockets are below it
    # Low limits: where the tests themselves run in a container, nobody can raise them. And no network of its own.
    (folder / "containers.conf").write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\nnetns = "host"\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=list(PROGRAMS))
def container(request, monkeypatch) -> Container:
    if not IMAGE:
        missing("HPCPOOL_TEST_IMAGE names no root file system")
    if shutil.which(PROGRAMS[request.param]) is None:
        missing(f"{request.param} is not installed")
    monkeypatch.setenv("USER", getpass.getuser())  # as in every login: Charliecloud insists
    if request.param == "charliecloud":
        return Container(IMAGE, runtime="charliecloud")
    home = request.getfixturevalue("podman_home")
    monkeypatch.setenv("CONTAINERS_CONF", str(home / "containers.conf"))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(home / "storage.conf"))
    import_image()
    return Container(PODMAN_IMAGE, runtime="podman")


def import_image() -> None:
    if subprocess.run(["podman", "image", "exists", PODMAN_IMAGE], check=False).returncode == 0:
        return
    with subprocess.Popen(["tar", "-C", IMAGE, "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(["podman", "import", "-", PODMAN_IMAGE], stdin=tar.stdout, check=True, capture_output=True)


@pytest.fixture
def script(installation, container, tmp_path) -> Callable[..., str]:
    """The script of a block whose manager is Python code, as the hpcpool of `installation` writes it."""

    def make(code: str, **options: object) -> str:
        program = (
            "from hpcpool.block_script import block_script; from hpcpool.containers import Container\n"
            "from hpcpool.launchers import SingleNodeLauncher\n"
            f"print(block_script(('python', '-c', {code!r}), nodes=1, block_dir={str(tmp_path / 'block dir')!r}, "
            f"launcher=SingleNodeLauncher(), container={container!r}, **{options!r}))"
        )
        environment = {**os.environ, "PYTHONPATH": str(installation)}
        command = [sys.executable, "-P", "-c", program]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    return make


def start(text: str) -> subprocess.Popen[str]:
    return subprocess.Popen(["bash", "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_manager_in_a_container_has_hpcpool_its_folder_and_the_variables(script, installation, tmp_path):
    code = (
        "import os, sys, pathlib; from hpcpool.processes import manager_process; "
        "print(sys.executable, os.getcwd(), os.environ['A'], manager_process.__name__); pathlib.Path('made').touch()"
    )
    environment = {"A": "it's", "PYTHONPATH": ""}
    process = start(script(f"import sys; sys.path.append({str(installation)!r}); {code}", env=environment))
    stdout, stderr = process.communicate(timeout=100)
    block = tmp_path / "block dir"
    assert (process.returncode, stdout) == (0, f"/usr/bin/python3 {block} it's hpcpool.processes.manager_process\n"), (
        stderr
    )
    assert (block / "made").exists()


def test_an_image_without_the_interpreter_says_so(script, container):
    process = start(script("", python="/opt/python"))
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 127
    assert f"there is no interpreter /opt/python in {container.image}; name one that is there" in stderr


def test_what_tells_the_job_to_end_reaches_the_manager_in_the_container(script):
    code = (
        "import os, signal, sys\n"
        "def end(number, frame): os.write(1, b'ending\\n'); sys.exit(5)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "os.write(1, b'ready\\n')\n"
        "while True: signal.pause()"
    )
    process = start(script(code))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (5, "ending\n"), stderr
