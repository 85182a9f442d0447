from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from hpcpool.errors import SSHError
from hpcpool.providers.base import BlockRequest, JobState, JobStatus, RemoteDriver, SubmitError, Unreachable
from hpcpool.providers.batch import JobRequest
from hpcpool.providers.batch_driver import BatchDriver, open_driver
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.ssh.login import SSHLogin
from tests.conftest import wait_until
from tests.providers.ssh.streams import answer_of, echo, serving

pytestmark = pytest.mark.testbed

PATIENCE_S = 40.0


class ShellSystem:
    """A batch system of three shell commands: a job is a process of the login node, and its id the number of that."""

    def script(self, job: JobRequest) -> str:
        return f"cd {job.cwd}\nexec >{job.stdout} 2>{job.stderr}\n{job.body}"

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        start = 'setsid -f sh -c "echo \\$\\$ >&3; exec bash $1 3>&-" 3>&1 >/dev/null 2>&1 </dev/null'
        return ("sh", "-c", start, "sh", script_path)

    def parse_submit(self, result: CommandResult) -> str:
        if result.code != 0:
            raise SubmitError(result.words)
        return result.stdout.strip()

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        return ("sh", "-c", 'for id in "$@"; do kill -0 "$id" && echo "$id"; done; :', "sh", *job_ids)

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        if result.code != 0:
            return dict.fromkeys(job_ids, JobStatus(JobState.UNKNOWN, reason=result.words))
        return {job_id: JobStatus(JobState.RUNNING) for job_id in result.stdout.split()}

    def history_command(self, job_ids: Sequence[str]) -> None:
        return None

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return {}

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        return ("sh", "-c", 'for id in "$@"; do kill -s TERM -- "-$id"; done', "sh", *job_ids)


def opened(login: SSHLogin) -> contextlib.closing[BatchDriver]:
    driver = open_driver(
        ShellSystem(), "/run/of-a-test", login=login, job_dir=None, poll_interval_s=0.1, walltime_s=None
    )
    return contextlib.closing(driver)


def request(driver: BatchDriver, script: str, **changes: object) -> BlockRequest:
    fields = {
        "block_id": "b1",
        "nodes": 1,
        "command": ("false",),
        "script": script,
        "cwd": driver.block_dir("b1"),
        "stdout": "/unused",
        "stderr": "/unused",
    }
    return BlockRequest(**{**fields, **changes})  # type: ignore[arg-type]


def test_jobs_are_submitted_watched_and_cancelled_on_the_login_node(server):
    with opened(server.login()) as driver:
        assert isinstance(driver, RemoteDriver)
        folder = Path(driver.block_dir("b1"))
        assert folder.is_relative_to(server.home)
        job = driver.submit(request(driver, "cat key; sleep 100", files={"key": b"secret\n"}))
        assert driver.status([job])[job].state is JobState.RUNNING
        out = folder / "job.out"
        assert wait_until(lambda: out.exists() and out.read_text() == "secret\n", PATIENCE_S)
        driver.cancel([job])
        assert wait_until(lambda: driver.status([job])[job].state is JobState.ENDED, PATIENCE_S)
    assert not folder.exists()


def test_a_job_that_fails_tells_the_end_of_its_stderr(server):
    with opened(server.login()) as driver:
        job = driver.submit(request(driver, "echo the reason >&2; exit 3"))
        assert wait_until(lambda: driver.status([job])[job].state is JobState.FAILED, PATIENCE_S)
        status = driver.status([job])[job]
        assert (status.exit_code, status.stderr_tail) == (3, "the reason")


def test_a_cut_leaves_jobs_unknown_or_running_and_never_over(server):
    with opened(server.login()) as driver:
        job = driver.submit(request(driver, "sleep 100"))
        server.stop()
        assert driver.status([job])[job].state is JobState.UNKNOWN
        server.start()
        assert wait_until(lambda: driver.status([job])[job].state is JobState.RUNNING, PATIENCE_S)
        driver.cancel([job])
        assert wait_until(lambda: driver.status([job])[job].state is JobState.ENDED, PATIENCE_S)


@pytest.mark.parametrize("gateway_ports", ["no", "yes"])
def test_the_way_back_is_made_anew_at_the_same_addresses_after_each_cut(new_server, gateway_ports):
    server = new_server(f"GatewayPorts {gateway_ports}")
    with serving(echo) as port, opened(server.login()) as driver:
        addresses = driver.reach(port)
        assert does_one_answer(addresses)
        for _ in range(3):
            before = server.connections()
            server.cut_connections()
            psutil.wait_procs(before, PATIENCE_S)
            assert wait_until(lambda: does_one_answer(addresses), PATIENCE_S), "nobody has asked the driver"
            assert reached(driver, port) == addresses


def test_while_the_login_node_is_down_there_is_no_way_back_and_then_there_is(server):
    with serving(echo) as port, opened(server.login()) as driver:
        addresses = driver.reach(port)
        server.stop()
        assert wait_until(lambda: is_unreachable(driver, port), PATIENCE_S)
        assert not does_one_answer(addresses)
        server.start()
        assert wait_until(lambda: does_one_answer(addresses), PATIENCE_S)
        assert reached(driver, port) == addresses


def test_after_a_cut_that_the_login_node_has_not_noticed_the_next_port_leads_here(server):
    with serving(echo) as port, opened(server.login(keepalive_s=1.0)) as driver:
        first, second, _ = ports = list(dict.fromkeys(map(port_of, driver.reach(port))))
        assert answer(first) == b"hello"
        frozen = server.freeze_connections()  # with the ports that they listen on
        try:
            assert wait_until(lambda: answer(second) == b"hello", PATIENCE_S)
        finally:
            for process in frozen:
                process.resume()
        assert list(dict.fromkeys(map(port_of, reached(driver, port)))) == ports


def test_a_login_node_that_allows_no_way_back_says_so_at_once(new_server):
    server = new_server("AllowTcpForwarding no")
    with opened(server.login()) as driver, pytest.raises(Unreachable, match="allows no tunnel"):
        driver.reach(1)


def does_one_answer(addresses: Sequence[str]) -> bool:
    """Whether one of them leads here; the nodes of this login node are on this machine, too."""
    return any(answer(port_of(address)) == b"hello" for address in addresses)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def answer(port: int) -> bytes:
    try:
        return answer_of("127.0.0.77", port, b"hello")
    except OSError:
        return b""


def reached(driver: BatchDriver, port: int) -> Sequence[str]:
    """The addresses once the way back is there: it leads here a bit before that."""
    assert wait_until(lambda: not is_unreachable(driver, port), PATIENCE_S)
    return driver.reach(port)


def is_unreachable(driver: BatchDriver, port: int) -> bool:
    try:
        driver.reach(port)
    except Unreachable:
        return True
    return False


def test_the_nodes_have_the_python_of_the_login_node(server):
    with opened(server.login()) as driver:
        assert driver.python("b1") == sys.executable


def test_a_login_node_that_is_down_cannot_be_opened(server):
    login = server.login()
    server.stop()
    with pytest.raises(SSHError, match="cannot connect"):
        opened(login)


def test_without_a_login_there_is_no_other_way_and_no_other_python(tmp_path):
    driver = open_driver(
        ShellSystem(), "/run/x", login=None, job_dir=str(tmp_path), poll_interval_s=1.0, walltime_s=None
    )
    with contextlib.closing(driver):
        assert (driver.reach(1), driver.python("b1")) == ((), "")


class MissingSystem(ShellSystem):
    def submit_command(self, script_path: str) -> tuple[str, ...]:
        return ("no-such-submit", script_path)


def test_commands_of_a_batch_system_that_are_not_there_are_told_with_the_machine(server):
    driver = open_driver(
        MissingSystem(), "/run/x", login=server.login(), job_dir=None, poll_interval_s=1.0, walltime_s=None
    )
    with (
        contextlib.closing(driver),
        pytest.raises(SubmitError, match=r"no-such-submit cannot be run on .*127\.0\.0\.11"),
    ):
        driver.submit(request(driver, "true"))
