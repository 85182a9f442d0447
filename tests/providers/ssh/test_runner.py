from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator

import pytest

from hpcpool.errors import SSHError
from hpcpool.providers.commands import LocalRunner, Runner
from hpcpool.providers.ssh.connection import connect
from hpcpool.providers.ssh.runner import SSHRunner
from tests.conftest import wait_until
from tests.gate import Gate

pytestmark = pytest.mark.testbed

PATIENCE_S = 60.0


@pytest.fixture(params=["local", "ssh"])
def runner(request) -> Iterator[Runner]:
    """Both runners: what is tested with this must be the same for both."""
    made = LocalRunner() if request.param == "local" else SSHRunner(request.getfixturevalue("server").login())
    with contextlib.closing(made):
        yield made


@pytest.fixture
def ssh(server) -> Iterator[SSHRunner]:
    with contextlib.closing(SSHRunner(server.login())) as made:
        yield made


# What is the same here and there


def test_a_command_gives_its_outputs_and_its_code(runner):
    done = runner.run(("sh", "-c", "echo out; echo err >&2; exit 3"), timeout_s=PATIENCE_S)
    assert (done.code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert done.argv[0] == "sh"


def test_arguments_arrive_as_they_are(runner):
    words = ("a b", "it's", '"', "$HOME", "*", "\\n", "", "ü", "; rm -rf x", "!!")
    done = runner.run(("printf", "<%s>", *words), timeout_s=PATIENCE_S)
    assert done.stdout == "".join(f"<{word}>" for word in words)


def test_stdin_arrives_whole_and_ends(runner):
    text = "line of text\n" * 500_000  # more than all buffers on the way
    done = runner.run(("wc", "-c"), timeout_s=PATIENCE_S, stdin=text)
    assert int(done.stdout) == len(text)


def test_without_stdin_a_command_reads_nothing(runner):
    assert runner.run(("cat",), timeout_s=PATIENCE_S).stdout == ""


def test_a_command_may_answer_while_its_stdin_is_still_being_sent(runner):
    text = "x" * 4_000_000
    done = runner.run(("cat",), timeout_s=PATIENCE_S, stdin=text)
    assert done.stdout == text


def test_much_on_both_outputs_arrives_whole(runner):
    done = runner.run(("sh", "-c", "seq 200000; seq 200000 >&2"), timeout_s=PATIENCE_S)
    assert done.stdout == done.stderr == "".join(f"{number}\n" for number in range(1, 200_001))


def test_commands_run_in_the_c_locale(runner):
    assert runner.run(("sh", "-c", "echo $LC_ALL"), timeout_s=PATIENCE_S).stdout == "C\n"


def test_a_command_that_is_not_there_has_no_code(runner):
    done = runner.run(("no-such-command", "x"), timeout_s=PATIENCE_S)
    assert done.code is None
    assert done.was_not_started
    assert "no-such-command cannot be run" in done.stderr
    assert "No such file or directory" in done.stderr


def test_a_command_that_a_signal_ended_has_its_number_as_code(runner):
    assert runner.run(("sh", "-c", "kill -TERM $$"), timeout_s=PATIENCE_S).code == -signal.SIGTERM


def test_a_command_that_takes_too_long_is_given_up(runner):
    began = time.monotonic()
    done = runner.run(("sleep", "60"), timeout_s=0.5)
    assert done.code is None
    assert "sleep did not answer within 0.5 s" in done.stderr
    assert time.monotonic() - began < 30


def test_files_are_written_for_the_user_alone(runner, tmp_path):
    folder = tmp_path / "above" / "folder"
    runner.write_files(str(folder), {"a": b"\0one", "b": b""})
    runner.write_files(str(folder), {"a": b"two"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"two", "b": b""}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "a", folder / "b")}
    assert modes == {0o700, 0o600}


def test_a_program_that_two_machines_write_can_be_run_at_every_moment(ssh, tmp_path):
    program = tmp_path / "program"
    is_over = threading.Event()
    modes = set()

    def look() -> None:
        is_last = False
        while not is_last:
            is_last = is_over.is_set()
            with contextlib.suppress(FileNotFoundError):  # not written yet
                modes.add(stat.S_IMODE(program.stat().st_mode))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(20):
            ssh.write_files(str(tmp_path), {"program": b"#!/bin/sh\n"}, mode=0o700)
    finally:
        is_over.set()
        looker.join()
    assert modes == {0o700}


def test_files_that_cannot_be_written_are_an_os_error(runner, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        runner.write_files(str(tmp_path / "file" / "folder"), {"a": b""})


def test_the_tail_of_a_file_is_its_end(runner, tmp_path):
    (tmp_path / "log").write_text("first line\nlast line\n")
    assert runner.tail_of(str(tmp_path / "log"), 10) == "last line\n"
    assert runner.tail_of(str(tmp_path / "log"), 1000) == "first line\nlast line\n"
    assert runner.tail_of(str(tmp_path / "none"), 10) == ""


def test_a_folder_is_removed_with_all_in_it(runner, tmp_path):
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "below" / "file").touch()
    runner.remove_folder(str(tmp_path / "folder"))
    runner.remove_folder(str(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


def test_a_runner_is_closed_twice(runner):
    runner.run(("true",), timeout_s=PATIENCE_S)
    runner.close()
    runner.close()


def test_runners_that_make_the_same_folder_at_once_do_not_disturb_each_other(server, tmp_path):
    folder, login = tmp_path / "a" / "b" / "c", server.login()
    errors: list[OSError] = []

    def write(number: int) -> None:
        with contextlib.closing(SSHRunner(login)) as runner:
            runner.home()  # connected
            barrier.wait(PATIENCE_S)
            try:
                runner.write_files(str(folder), {str(number): b"x"})
            except OSError as error:
                errors.append(error)

    barrier = threading.Barrier(6)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(path.name for path in folder.iterdir()) == list("012345")


# What only SSH has


def test_home_is_that_of_the_other_machine(ssh, server):
    assert ssh.home() == str(server.home)


def test_all_commands_and_files_share_one_connection(ssh, server, tmp_path):
    for number in range(15):  # more than MaxSessions
        assert ssh.run(("true",), timeout_s=PATIENCE_S).code == 0
        ssh.write_files(str(tmp_path / "x"), {"a": str(number).encode()})
    assert server.log.count("Accepted publickey") == 1


def test_what_start_up_files_print_is_not_the_commands_output(new_server):
    server = new_server("ForceCommand echo noise; echo noise >&2; eval $SSH_ORIGINAL_COMMAND")
    with contextlib.closing(SSHRunner(server.login())) as runner:
        done = runner.run(("echo", "answer"), timeout_s=PATIENCE_S)
    assert (done.stdout, done.stderr) == ("answer\n", "")


def test_a_login_shell_reads_its_profile(server):
    (server.home / ".bash_profile").write_text("echo noise\nexport SITE=here\n")
    for login_shell, expected in ((True, "here\n"), (False, "\n")):
        with contextlib.closing(SSHRunner(server.login(login_shell=login_shell))) as runner:
            assert runner.run(("sh", "-c", "echo $SITE"), timeout_s=PATIENCE_S).stdout == expected


def test_a_command_that_was_given_up_is_ended_on_the_other_machine(ssh, tmp_path):
    pid_file = tmp_path / "pid"
    ssh.run(("sh", "-c", f"echo $$ > {pid_file}; exec sleep 60"), timeout_s=2.0)
    assert wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), PATIENCE_S)
    assert wait_until(lambda: not os.path.exists(f"/proc/{int(pid_file.read_text())}"), PATIENCE_S)


def test_a_connection_that_was_lost_is_made_again_for_the_next_command(ssh, server):
    assert ssh.run(("true",), timeout_s=PATIENCE_S).code == 0
    server.cut_connections()
    assert ssh.run(("echo", "again"), timeout_s=PATIENCE_S).stdout == "again\n"


def test_a_connection_that_was_lost_is_made_again_for_files(ssh, server, tmp_path):
    ssh.write_files(str(tmp_path), {"a": b"1"})
    server.cut_connections()
    ssh.write_files(str(tmp_path), {"a": b"2"})
    assert (tmp_path / "a").read_bytes() == b"2"
    server.cut_connections()
    assert ssh.tail_of(str(tmp_path / "a"), 10) == "2"


def test_a_command_whose_connection_is_cut_is_reported_and_not_run_again(ssh, server, tmp_path):
    runs = tmp_path / "runs"

    def cut() -> None:
        assert wait_until(lambda: runs.exists() and runs.read_text() == "run\n", PATIENCE_S)
        server.cut_connections()

    cutter = threading.Thread(target=cut)
    cutter.start()
    with Gate(tmp_path) as gate:
        done = ssh.run(("sh", "-c", f"echo run >> {runs}; cat {gate.path}"), timeout_s=PATIENCE_S)
        cutter.join()
    assert done.code is None
    assert not done.was_not_started
    assert "was lost while sh ran; whether it took effect is not known" in done.stderr.replace(" (", "(")
    assert runs.read_text() == "run\n"
    assert ssh.run(("true",), timeout_s=PATIENCE_S).code == 0


def test_a_connection_that_has_gone_silent_is_replaced_within_the_commands_time(ssh, server):
    ssh.run(("true",), timeout_s=PATIENCE_S)
    frozen = server.freeze_connections()
    try:
        began = time.monotonic()
        assert ssh.run(("true",), timeout_s=5.0).code == 0
        assert time.monotonic() - began < 20
    finally:
        for process in frozen:
            process.resume()


def test_a_server_without_free_sessions_is_asked_on_a_new_connection(new_server):
    server = new_server("MaxSessions 1")
    with contextlib.closing(SSHRunner(server.login())) as runner:
        held = runner._connected().open_session()
        assert runner.run(("echo", "hi"), timeout_s=PATIENCE_S).stdout == "hi\n"
        held.close()


def test_a_machine_that_is_down_is_reported_and_left_alone_for_a_while(server):
    now = [100.0]
    attempts: list[float] = []

    def counted(login):
        attempts.append(now[0])
        return connect(login)

    login = server.login()
    server.stop()
    with contextlib.closing(SSHRunner(login, connect=counted, clock=lambda: now[0])) as runner:
        done = runner.run(("sbatch", "x"), timeout_s=PATIENCE_S)
        assert done.code is None
        assert done.was_not_started
        assert f"sbatch was not started on {login.destination}: cannot connect to {server.address}" in done.stderr
        runner.run(("true",), timeout_s=PATIENCE_S)
        now[0] += 1.1
        runner.run(("true",), timeout_s=PATIENCE_S)
        now[0] += 1.1  # the second pause is longer
        runner.run(("true",), timeout_s=PATIENCE_S)
        assert attempts == [100.0, 101.1]
        server.start()
        now[0] += 2.1
        assert runner.run(("true",), timeout_s=PATIENCE_S).code == 0


def test_a_closed_runner_connects_no_more(ssh):
    ssh.close()
    assert "has been closed" in ssh.run(("true",), timeout_s=PATIENCE_S).stderr
    with pytest.raises(SSHError):
        ssh.home()
