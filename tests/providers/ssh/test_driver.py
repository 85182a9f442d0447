from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hpcpool.providers.base import BlockRequest, Driver, JobState, JobStatus, RemoteDriver, SubmitError
from hpcpool.providers.ssh.driver import SSHDriver
from hpcpool.providers.ssh.provider import SSHProvider
from tests.conftest import wait_until
from tests.providers.ssh.streams import answer_of, echo, serving
from tests.testbed.sshd import Server

pytestmark = pytest.mark.testbed

PATIENCE_S = 40.0

#: Waits until it is asked to end, and then says so with its exit code.
WAITS = (
    sys.executable,
    "-c",
    "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    "print('up', flush=True)\nsignal.sigwait([signal.SIGTERM])",
)


class Cluster:
    """Two servers on this machine, and drivers for them."""

    def __init__(self, servers: list[Server], folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir()

    def provider(self, *numbers: int, **options: object) -> SSHProvider:
        """A provider of the servers of these numbers."""
        logins = tuple(self.servers[number].login() for number in numbers or range(len(self.servers)))
        return SSHProvider(logins, scratch=str(self.scratch), **options)  # type: ignore[arg-type]

    def request(self, *command: str, **changes: object) -> BlockRequest:
        fields = {
            "block_id": "b1",
            "nodes": 1,
            "command": command,
            "cwd": str(self.folder),
            "stdout": str(self.folder / "out"),
            "stderr": str(self.folder / "err"),
        }
        return BlockRequest(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def cluster(new_server, tmp_path) -> Cluster:
    return Cluster([new_server(), new_server()], tmp_path)


@pytest.fixture
def opened() -> Iterator[Callable[..., SSHDriver]]:
    """Opens the driver of a provider, and closes it at the end."""
    with contextlib.ExitStack() as stack:

        def open_driver(provider: SSHProvider) -> SSHDriver:
            return stack.enter_context(contextlib.closing(provider.open("/run/of-a-test")))

        yield open_driver


def ended(driver: SSHDriver, job: str) -> JobStatus:
    assert wait_until(lambda: driver.status([job])[job].state.is_over, PATIENCE_S)
    return driver.status([job])[job]


def state(driver: SSHDriver, job: str) -> JobState:
    return driver.status([job])[job].state


def printed(driver: SSHDriver, block: str = "b1") -> str:
    """What the jobs of a block have written to their stdouts."""
    return "".join(path.read_text() for path in sorted(Path(driver.block_dir(block)).glob("job-*/out")))


def test_it_is_a_driver_that_reaches_other_machines(cluster, opened):
    driver = opened(cluster.provider())
    assert isinstance(driver, Driver)
    assert isinstance(driver, RemoteDriver)
    assert not driver.is_local


def test_a_block_starts_runs_and_ends(cluster, opened):
    driver = opened(cluster.provider())
    job = driver.submit(cluster.request(*WAITS))
    assert wait_until(lambda: printed(driver) == "up\n", PATIENCE_S)
    assert state(driver, job) is JobState.RUNNING
    driver.cancel([job])
    status = ended(driver, job)
    assert (status.state, status.exit_code) == (JobState.ENDED, 0)
    assert "cancelled" in status.reason
    assert wait_until(lambda: not Path(driver.block_dir("b1")).exists(), PATIENCE_S)
    assert driver.status([job])[job] == status


def test_files_environment_and_script_are_there(cluster, opened):
    driver = opened(cluster.provider())
    folder = driver.block_dir("b1")
    script = f'cat "{folder}/key"; echo "$SAID"; stat -c %a "{folder}" "{folder}/key"; exec sleep 100'
    job = driver.submit(cluster.request("false", script=script, files={"key": b"secret\n"}, env={"SAID": "a'b c"}))
    assert wait_until(lambda: printed(driver) == "secret\na'b c\n700\n600\n", PATIENCE_S)
    driver.cancel([job])
    ended(driver, job)


def test_a_block_that_fails_tells_its_code_and_the_end_of_its_stderr(cluster, opened):
    driver = opened(cluster.provider())
    job = driver.submit(cluster.request("sh", "-c", "seq 1000 >&2; echo the reason >&2; exit 3"))
    status = ended(driver, job)
    assert (status.state, status.exit_code) == (JobState.FAILED, 3)
    assert f"exited with code 3 on {cluster.servers[0].login().destination}" in status.reason
    assert status.stderr_tail.endswith("999\n1000\nthe reason")


def test_a_block_that_is_killed_tells_the_signal(cluster, opened):
    driver = opened(cluster.provider())
    job = driver.submit(cluster.request("sh", "-c", "kill -SEGV $$"))
    assert ended(driver, job).exit_code == -signal.SIGSEGV


def test_a_block_that_does_not_end_when_asked_is_ended_by_force(cluster, opened):
    driver = opened(cluster.provider())
    job = driver.submit(cluster.request("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"))
    assert wait_until(lambda: printed(driver) == "up\n", PATIENCE_S)
    driver.cancel([job])
    assert state(driver, job) is JobState.RUNNING
    driver.cancel([job])
    assert ended(driver, job).state is JobState.ENDED


def test_a_block_of_several_nodes_runs_on_each_of_them(cluster, opened):
    driver = opened(cluster.provider())
    job = driver.submit(cluster.request("sh", "-c", "echo $SSH_CONNECTION | cut -d' ' -f3; sleep 100", nodes=2))
    assert wait_until(lambda: printed(driver) == "127.0.0.11\n127.0.0.12\n", PATIENCE_S)
    driver.cancel([job])
    driver.cancel([job])
    assert ended(driver, job).state is JobState.ENDED


def test_a_block_is_over_when_all_of_its_nodes_are_and_fails_with_one(cluster, opened):
    driver = opened(cluster.provider())
    code = "case $SSH_CONNECTION in *127.0.0.11*) exit 4;; esac; echo up; sleep 100"
    job = driver.submit(cluster.request("sh", "-c", code, nodes=2))
    assert wait_until(lambda: printed(driver) == "up\n", PATIENCE_S)
    assert state(driver, job) is JobState.RUNNING
    os.kill(int(next(Path(driver.block_dir("b1")).glob("job-1/pid")).read_text().split()[0]), signal.SIGKILL)
    status = ended(driver, job)
    assert (status.state, status.exit_code) == (JobState.FAILED, 4)
    assert "killed on" in status.reason


def test_a_lost_connection_does_not_end_a_block(cluster, opened):
    driver = opened(cluster.provider(0))
    job = driver.submit(cluster.request(*WAITS))
    assert wait_until(lambda: printed(driver) == "up\n", PATIENCE_S)
    cluster.servers[0].cut_connections()
    assert state(driver, job) is JobState.RUNNING  # it was asked on a new connection
    driver.cancel([job])
    assert ended(driver, job).exit_code == 0


def test_a_machine_that_cannot_be_asked_leaves_its_block_unknown_until_it_can(cluster, opened):
    driver = opened(cluster.provider(0))
    job = driver.submit(cluster.request(*WAITS))
    assert wait_until(lambda: printed(driver) == "up\n", PATIENCE_S)
    cluster.servers[0].stop()
    status = driver.status([job])[job]
    assert status.state is JobState.UNKNOWN
    assert "cannot connect" in status.reason
    cluster.servers[0].start()
    assert wait_until(lambda: state(driver, job) is JobState.RUNNING, PATIENCE_S)
    driver.cancel([job])
    assert ended(driver, job).exit_code == 0


def test_no_machine_has_two_blocks_unless_it_is_named_twice(cluster, opened):
    driver = opened(cluster.provider(0, 0, 1))
    jobs = [driver.submit(cluster.request(*WAITS, block_id=f"b{number}")) for number in range(3)]
    assert len(set(jobs)) == 3
    with pytest.raises(SubmitError, match="a block of 1 cannot be had on 3 hosts; 3 of them have a block"):
        driver.submit(cluster.request(*WAITS, block_id="b3"))
    assert wait_until(lambda: all(printed(driver, f"b{number}") for number in range(3)), PATIENCE_S)
    driver.cancel(jobs)
    for job in jobs:
        ended(driver, job)
    again = driver.submit(cluster.request("true", block_id="b4"))
    assert ended(driver, again).state is JobState.ENDED


def test_a_machine_that_is_down_is_passed_by(cluster, opened):
    driver = opened(cluster.provider())
    cluster.servers[0].stop()
    job = driver.submit(cluster.request("true"))
    assert job.endswith("@1")
    assert ended(driver, job).state is JobState.ENDED
    with pytest.raises(
        SubmitError, match=f"a block of 2 cannot be had.*cannot connect to {cluster.servers[0].address}"
    ):
        driver.submit(cluster.request(*WAITS, block_id="b2", nodes=2))
    assert wait_until(lambda: not list(cluster.scratch.glob("*/b2")), PATIENCE_S)


def test_a_command_that_is_not_there_fails_with_the_shells_words(cluster, opened):
    driver = opened(cluster.provider())
    job = driver.submit(cluster.request("/no/such/python", "-m", "x"))
    status = ended(driver, job)
    assert status.exit_code == 127
    assert "/no/such/python: not found" in status.stderr_tail


def test_a_port_of_this_machine_is_reached_from_the_nodes_also_after_a_cut(cluster, opened):
    driver = opened(cluster.provider())
    with serving(echo) as port:
        addresses = driver.reach(port)
        assert driver.reach(port) == addresses
        job = driver.submit(cluster.request(*WAITS, nodes=2))
        ports = [int(address.removeprefix("127.0.0.1:")) for address in addresses]

        def answers() -> list[int]:
            return [there for there in ports if answers_at(there)]

        assert len(answers()) == 2  # both machines are this one, so each took another of the ports
        before = cluster.servers[0].connections()
        cluster.servers[0].cut_connections()
        psutil.wait_procs(before, PATIENCE_S)
        assert wait_until(lambda: len(answers()) == 2, PATIENCE_S), "nobody has asked the driver"
        assert state(driver, job) is JobState.RUNNING
        driver.cancel([job])
        ended(driver, job)


def test_a_machine_that_allows_no_tunnel_gets_its_block_all_the_same(new_server, tmp_path, opened, caplog):
    cluster = Cluster([new_server("AllowTcpForwarding no")], tmp_path)
    driver = opened(cluster.provider())
    driver.reach(1)
    job = driver.submit(cluster.request(*WAITS))
    assert wait_until(lambda: printed(driver) == "up\n", PATIENCE_S)
    assert state(driver, job) is JobState.RUNNING
    assert "has no tunnel to here" in caplog.text
    driver.cancel([job])
    ended(driver, job)


def answers_at(port: int) -> bool:
    try:
        return answer_of("127.0.0.1", port, b"hello") == b"hello"
    except OSError:
        return False


def test_the_python_of_the_nodes_is_a_file_of_the_block(cluster, opened):
    driver = opened(cluster.provider(python=sys.executable))
    code = "import sys; print(sys.executable, *sys.argv[1:], flush=True); import time; time.sleep(100)"
    job = driver.submit(cluster.request(driver.python("b1"), "-c", code, "a b"))
    assert wait_until(lambda: printed(driver) == f"{sys.executable} a b\n", PATIENCE_S)
    driver.cancel([job])
    driver.cancel([job])
    ended(driver, job)


def test_closing_clears_up_behind_what_has_ended_and_takes_its_time_for_no_more(cluster):
    driver = cluster.provider().open("/run/of-a-test")
    job = driver.submit(cluster.request(*WAITS))
    assert wait_until(lambda: printed(driver) == "up\n", PATIENCE_S)
    driver.cancel([job])
    began = time.monotonic()
    driver.close()
    driver.close()
    assert time.monotonic() - began < 20
    with pytest.raises(RuntimeError):
        driver.submit(cluster.request("true"))


def test_a_later_run_can_look_at_and_end_what_an_earlier_one_has_left(cluster, opened):
    job = opened(cluster.provider()).submit(cluster.request(*WAITS, nodes=2))
    later = opened(cluster.provider())
    assert state(later, job) is JobState.RUNNING
    assert wait_until(lambda: len(list(cluster.scratch.glob("*/b1/job-*/out"))) == 2, PATIENCE_S)
    assert wait_until(lambda: all(p.read_text() == "up\n" for p in cluster.scratch.glob("*/b1/job-*/out")), PATIENCE_S)
    later.cancel([job])
    assert ended(later, job).state is JobState.ENDED


def test_an_unknown_job_is_unknown(cluster, opened):
    driver = opened(cluster.provider())
    for job in ("nobody", "/tmp/x@7", "/tmp/x@"):
        driver.cancel([job])
        assert state(driver, job) is JobState.UNKNOWN
