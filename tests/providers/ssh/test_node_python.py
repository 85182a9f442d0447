from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hpcpool.errors import ConfigError, SSHError
from hpcpool.providers.ssh.node_python import Contents, NodePython, needed, read_probe
from hpcpool.providers.ssh.runner import SSHRunner
from hpcpool.wire.version import VERSION
from tests.testbed.wheels import pack_requirements

PATIENCE_S = 60.0


def test_what_a_python_says_of_itself_is_read():
    assert read_probe("3.11 0.1.0 3.1.3\n") == Contents("3.11", "0.1.0", "3.1.3")
    assert read_probe("3.9 - -\n") == Contents("3.9", "-", "-")
    assert read_probe("bash: no\n") is read_probe("") is None


@pytest.mark.parametrize(
    ("there", "fits"),
    [
        (Contents("3.11", "0.1.0", "3.1.3"), True),
        (Contents("3.11", "0.1.0", "3.0.0"), True),
        (Contents("3.11", "0.1.0", "2.2.0"), False),
        (Contents("3.12", "0.1.0", "3.1.3"), False),
        (Contents("3.11", "0.2.0", "3.1.3"), False),
        (Contents("3.11", "-", "3.1.3"), False),
    ],
)
def test_a_python_fits_by_its_minor_version_its_hpcpool_and_its_pickles(there, fits):
    assert there.fits(Contents("3.11", "0.1.0", "3.1.3")) == fits


def test_this_very_python_fits_itself():
    assert needed().fits(needed())
    assert str(Contents("3.9", "-", "-")) == "Python 3.9 with neither hpcpool nor cloudpickle"


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory) -> str:
    """A Python of this version that has nothing, not even pip."""
    folder = tmp_path_factory.mktemp("bare") / "python"
    subprocess.run((sys.executable, "-m", "venv", "--without-pip", str(folder)), check=True)
    return str(folder / "bin" / "python")


@pytest.fixture
def wheels(tmp_path) -> str:
    return pack_requirements(tmp_path / "wheels")


@pytest.fixture
def runner(server) -> Iterator[SSHRunner]:
    with contextlib.closing(SSHRunner(server.login())) as made:
        yield made


@pytest.mark.testbed
@pytest.mark.timeout(300)
def test_a_machine_without_hpcpool_gets_an_environment_once(runner, server, bare_python, wheels):
    wanted = NodePython(wheels=wheels, here=bare_python)
    python = wanted.find(runner, "node")
    (made,) = (server.home / ".hpcpool" / "envs").iterdir()
    assert python == f"{made}/bin/python"
    assert made.name.startswith(f"{VERSION}-")
    code = "import hpcpool.processes.manager_process as m; print(m.__file__)"
    done = runner.run((python, "-c", code), timeout_s=PATIENCE_S)
    assert done.stdout.startswith(str(made)), done.stderr
    changed = made.stat().st_mtime_ns
    assert wanted.find(runner, "node") == python
    assert made.stat().st_mtime_ns == changed
    assert [path.name for path in made.parent.iterdir()] == [made.name]


@pytest.mark.testbed
@pytest.mark.timeout(300)
def test_a_machine_that_reaches_no_index_is_told_what_to_do(runner, server, bare_python):
    wanted = NodePython(pip_options=("--index-url", "http://127.0.0.1:9/simple", "--retries", "0"), here=bare_python)
    with pytest.raises(SSHError, match=r"cannot be installed on node: .*pip download -d wheels .*wheels='wheels'"):
        wanted.find(runner, "node")
    assert list((server.home / ".hpcpool" / "envs").iterdir()) == []


@pytest.mark.testbed
def test_a_python_that_is_named_is_looked_at_and_not_changed(runner, server, bare_python):
    with pytest.raises(SSHError, match=r"/no/python on node is not there\. Install hpcpool"):
        NodePython("/no/python").find(runner, "node")
    with pytest.raises(SSHError, match=r"on node is Python 3\.\d+ with neither hpcpool nor cloudpickle, and"):
        NodePython(bare_python).find(runner, "node")
    assert not (server.home / ".hpcpool").exists()


@pytest.mark.testbed
def test_wheels_must_be_a_folder(runner, bare_python):
    with pytest.raises(ConfigError, match="no folder"):
        NodePython(wheels="/no/folder", here=bare_python).find(runner, "node")


@pytest.mark.testbed
def test_the_python_of_this_program_is_used_where_it_means_the_same(new_server):
    server = new_server()
    with contextlib.closing(SSHRunner(server.login())) as runner:
        assert NodePython().find(runner, "node") == sys.executable
    assert not (server.home / ".hpcpool").exists()


@pytest.mark.testbed
def test_a_machine_that_is_down_is_not_taken_for_one_without_python(server):
    login = server.login()
    server.stop()
    with contextlib.closing(SSHRunner(login)) as runner, pytest.raises(SSHError, match="cannot connect"):
        NodePython().find(runner, "node")
