"""Calls on hosts that are reached over SSH: real servers on this machine, each with a home directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool import Config, HPCPoolExecutor, NodePool
from hpcpool.errors import BrokenPool
from hpcpool.providers import SSHProvider
from tests.conftest import wait_until
from tests.live.processes import Pool
from tests.testbed import sshd
from tests.testbed.sshd import Server
from tests.testbed.wheels import pack_requirements

pytestmark = [pytest.mark.live, pytest.mark.testbed, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 90.0


@pytest.fixture
def servers(tmp_path) -> Iterator[list[Server]]:
    if not sshd.IS_THERE:
        pytest.skip(sshd.MISSING)
    key = sshd.make_key(tmp_path / "key")
    made = [
        Server(tmp_path / f"server{number}", f"127.0.0.{10 + number}", key, python_path=str(ROOT)) for number in (1, 2)
    ]
    for server in made:
        server.folder.mkdir()
        server.start()
    yield made
    for server in made:
        server.stop()


@pytest.fixture
def bare_python(tmp_path) -> str:
    """A Python of this version that has nothing."""
    subprocess.run((sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")), check=True)
    return str(tmp_path / "bare" / "bin" / "python")


def config(servers: list[Server], tmp_path: Path, *, nodes: int = 1, **options: object) -> Config:
    """A configuration whose nodes can only be reached through tunnels."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    logins = tuple(server.login() for server in servers)
    provider = SSHProvider(logins, scratch=str(scratch), poll_interval_s=0.5, **options)  # type: ignore[arg-type]
    pool = NodePool(provider, nodes_per_block=nodes, workers_per_node=1, max_blocks=2)
    # No host has this address, so all that comes has come through a tunnel.
    return Config(pool, addresses="240.0.0.1")


def where_from(number: int) -> tuple[int, str, str]:
    """Which host runs this."""
    return number, os.environ["SSH_CONNECTION"].split()[2], sys.prefix


def test_calls_run_on_all_hosts_of_a_block_and_nothing_stays_there(servers, tmp_path):
    with HPCPoolExecutor(config(servers, tmp_path, nodes=2)) as executor:
        assert executor.submit(pow, 2, 10).result(PATIENCE_S) == 1024
        hosts: set[str] = set()

        def has_seen_both() -> bool:
            hosts.update(host for _, host, _ in executor.map(where_from, range(20), timeout=PATIENCE_S))
            return hosts == {"127.0.0.11", "127.0.0.12"}

        assert wait_until(has_seen_both, PATIENCE_S)
        large = os.urandom(4 << 20)
        assert executor.submit(bytes.__add__, large, b"!").result(PATIENCE_S) == large + b"!"
    assert wait_until(lambda: not list((tmp_path / "scratch").glob("*/*")), PATIENCE_S)


def test_a_lost_connection_breaks_no_call(servers, tmp_path):
    with HPCPoolExecutor(config(servers[:1], tmp_path)) as executor:
        assert executor.submit(pow, 2, 3).result(PATIENCE_S) == 8
        servers[0].cut_connections()
        assert executor.submit(pow, 2, 4).result(PATIENCE_S) == 16


def test_a_call_that_runs_when_the_connection_is_lost_runs_on_and_once(servers, tmp_path):
    gate, started = tmp_path / "gate", tmp_path / "started"
    with HPCPoolExecutor(config(servers[:1], tmp_path)) as executor:
        future = executor.submit(note_and_wait, gate, started)
        assert wait_until(started.exists, PATIENCE_S)
        log = Pool.below(os.getpid()).directory / "interchange.log"
        for cut in (1, 2):
            servers[0].cut_connections()
            assert wait_until(lambda cut=cut: log.read_text().count("back over") >= cut, PATIENCE_S)
        gate.touch()
        assert future.result(PATIENCE_S) == [future.info.pid]
        assert future.info.attempt == 1


def note_and_wait(gate: Path, started: Path) -> list[int]:
    """Who has run this."""
    with started.open("a") as file:
        print(os.getpid(), file=file)
    assert wait_until(gate.exists, PATIENCE_S)
    return [int(pid) for pid in started.read_text().split()]


def test_a_host_whose_python_does_not_fit_breaks_the_pool_with_what_to_do(servers, bare_python, tmp_path):
    unfit = config(servers[:1], tmp_path, python=bare_python)
    servers[0].restart(python_path="")
    with HPCPoolExecutor(unfit) as executor, pytest.raises(BrokenPool, match="neither hpcpool nor cloudpickle"):
        executor.submit(pow, 2, 3).result(PATIENCE_S)


def test_a_host_without_hpcpool_gets_it(servers, bare_python, tmp_path):
    """The program runs with a Python that is on the host, too, and has nothing there: here PYTHONPATH helps it."""
    servers[0].restart(python_path="")
    server, wheels = servers[0], pack_requirements(tmp_path / "wheels")
    program = f"""
from hpcpool import Config, HPCPoolExecutor, NodePool
from hpcpool.providers import SSHLogin, SSHProvider
provider = SSHProvider([{server.login()!r}], scratch={str(tmp_path)!r}, wheels={wheels!r})
with HPCPoolExecutor(Config(NodePool(provider), addresses="240.0.0.1")) as executor:
    print(executor.submit(lambda: __import__("sys").prefix).result(180))
"""
    there = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
    environment = {**os.environ, "PYTHONPATH": there}
    done = subprocess.run(
        (bare_python, "-c", program), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.startswith(f"{server.home}/.hpcpool/envs/"), done.stderr
