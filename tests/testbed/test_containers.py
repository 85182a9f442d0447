"""Blocks in real containers: Charliecloud, Podman and Docker, where they are installed and there is an image.

`HPCPOOL_TEST_IMAGE` names the image: the folder of a root file system with a Python of this version and without hpcpool
(`tests/testbed/make-image` makes one).
"""

from __future__ import annotations

import dataclasses
import getpass
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import hpcpool
from hpcpool import WorkerCrashed
from hpcpool.containers import Container
from tests.live.folder_system import FolderSystem, folder_system
from tests.live.processes import PATIENCE_S, executor
from tests.testbed.machine import Daemons, missing, until

IMAGE = os.environ.get("HPCPOOL_TEST_IMAGE", "")
#: What Podman and Docker call the image.
IMPORTED = "localhost/hpcpool-test"
#: Where the tests' own hpcpool is.
INSTALLED = Path(hpcpool.__file__).parents[1]
NEEDED = ["hpcpool", "cloudpickle", "msgspec", "psutil", "tblib", "typing_extensions", "xxhash"]

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


@contextmanager
def podman() -> Iterator[dict[str, str]]:
    """Settings by which Podman keeps its images in a folder of the tests."""
    folder = Path(tempfile.mkdtemp(prefix="podman-"))  # a short path: sockets are below it
    # Low limits: where the tests themselves run in a container, nobody can raise them. And no network of its own.
    (folder / "containers.conf").write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\nnetns = "host"\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    settings = {"containers.conf": "CONTAINERS_CONF", "storage.conf": "CONTAINERS_STORAGE_CONF"}
    yield {name: str(folder / file) for file, name in settings.items()}
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def docker() -> Iterator[dict[str, str]]:
    """A Docker of the tests' own, which makes no network and no rule of the firewall."""
    folder = Path(tempfile.mkdtemp(prefix="docker-"))
    daemons = Daemons(folder, {})
    host = f"unix://{folder}/socket"
    places = (f"--data-root={folder}/root", f"--exec-root={folder}/run", f"--pidfile={folder}/pid", f"--host={host}")
    try:
        daemons.start("dockerd", "dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false", *places)
        ask = ["docker", f"--host={host}", "version"]
        until(lambda: subprocess.run(ask, capture_output=True, check=False).returncode == 0, "Docker answers")
        yield {"DOCKER_HOST": host}
    finally:
        daemons.stop_all()
        for place in (folder / "run/netns/default", folder / "root"):  # it mounts them and leaves them so
            subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def charliecloud() -> Iterator[dict[str, str]]:
    # It makes no folder to mount on in an image that cannot be written to: docs/containers.md says to make it.
    Path(f"{IMAGE}{INSTALLED}").mkdir(parents=True, exist_ok=True)
    yield {"USER": getpass.getuser()}  # as in every login: it insists


RUNTIMES = {"charliecloud": ("ch-run", charliecloud), "podman": ("podman", podman), "docker": ("dockerd", docker)}


@pytest.fixture(scope="module", params=RUNTIMES)
def container(request, temporary_directory) -> Iterator[Container]:
    if not IMAGE:
        missing("HPCPOOL_TEST_IMAGE names no root file system")
    program, start = RUNTIMES[request.param]
    if shutil.which(program) is None:
        missing(f"{request.param} is not installed")
    with start() as settings, pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        if request.param == "charliecloud":
            yield Container(IMAGE, runtime="charliecloud")
        else:
            import_image(request.param)
            yield Container(IMPORTED, runtime=request.param)


def import_image(program: str) -> None:
    with subprocess.Popen(["tar", "-C", IMAGE, "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run([program, "import", "-", IMPORTED], stdin=tar.stdout, check=True, capture_output=True)


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


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FolderSystem]:
    with folder_system(monkeypatch, tmp_path) as system:
        yield system


def test_calls_run_in_the_container_and_their_data_and_end_are_as_ever(container, installation, system):
    if not Path(IMAGE, f"usr/bin/python3.{sys.version_info.minor}").exists():
        missing("the image has another Python than the tests")
    with_libraries = dataclasses.replace(container, mounts=(str(installation),))
    node_pool = system.pool(container=with_libraries, env={"PYTHONPATH": str(installation)})
    with executor(node_pool) as pool:
        assert pool.submit(eval, "__import__('sys').executable").result(PATIENCE_S) == "/usr/bin/python3"
        assert pool.submit(len, bytes(2**20)).result(PATIENCE_S) == 2**20
        crash = pool.submit(eval, "__import__('os')._exit(7)").exception(PATIENCE_S)
        assert isinstance(crash, WorkerCrashed)
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1
    assert [(job / "code").read_text().strip() for job in system.jobs] == ["0"]
