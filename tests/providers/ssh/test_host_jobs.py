from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from hpcpool.providers.ssh.host_jobs import END, KILL, LOOK, START, Look, Sight, job_files, read_look
from tests.conftest import wait_until

PATIENCE_S = 20.0


def test_what_a_look_says_is_read():
    assert read_look("running\nended 0\nended 143\ngone\nmissing\n", 5) == [
        Sight(Look.RUNNING),
        Sight(Look.ENDED, 0),
        Sight(Look.ENDED, -signal.SIGTERM),
        Sight(Look.GONE),
        Sight(Look.MISSING),
    ]
    assert read_look("", 0) == []


@pytest.mark.parametrize("text", ["", "running\n", "running\nrunning\nrunning\n", "running\nended x\n", "running\nend"])
def test_what_is_cut_or_not_understood_says_nothing(text):
    assert read_look(text, 2) is None


@pytest.mark.live
class TestOnThisMachine:
    """The programs do not need SSH: any shell runs them."""

    @pytest.fixture
    def job(self, tmp_path):
        folder = tmp_path / "a job's folder"
        folder.mkdir()
        return folder

    def run(self, program: str, *folders: Path) -> str:
        done = subprocess.run(
            ("sh", "-s", "--", *map(str, folders)), input=program, capture_output=True, text=True, timeout=PATIENCE_S
        )
        return done.stdout

    def start(self, job: Path, *command: str, script: str = "", cwd: str = "/", env=None) -> None:
        for name, content in job_files(str(job), cwd, command, script, env or {}).items():
            (job / name).write_bytes(content)
        assert self.run(START, job) == "started\n"

    def look(self, job: Path) -> Sight:
        sights = read_look(self.run(LOOK, job), 1)
        assert sights is not None
        return sights[0]

    def ended(self, job: Path) -> Sight:
        assert wait_until(lambda: self.look(job).is_over, PATIENCE_S)
        return self.look(job)

    def session(self, job: Path) -> list[int]:
        leader = int((job / "pid").read_text().split()[0])
        found = subprocess.run(("ps", "-A", "-o", "pid=,sid=,stat="), capture_output=True, text=True, check=True)
        rows = [line.split() for line in found.stdout.splitlines()]
        return [int(pid) for pid, sid, state in rows if int(sid) == leader and not state.startswith("Z")]

    def test_a_job_runs_in_its_folder_and_environment_and_leaves_code_and_outputs(self, job, tmp_path):
        words = ("sh", "-c", 'echo "$PWD" "$SAID" "$1"; echo oops >&2; exit 3', "sh", "it's")
        self.start(job, *words, cwd=str(tmp_path), env={"SAID": "a b'c"})
        assert self.ended(job) == Sight(Look.ENDED, 3)
        assert (job / "out").read_text() == f"{tmp_path} a b'c it's\n"
        assert (job / "err").read_text() == "oops\n"

    def test_a_script_is_run_with_bash_in_place_of_the_command(self, job):
        self.start(job, "false", script="[[ -n $BASH ]] && echo bash\n")
        assert self.ended(job) == Sight(Look.ENDED, 0)
        assert (job / "out").read_text() == "bash\n"

    def test_a_job_whose_working_folder_is_not_there_starts_at_home_and_says_so(self, job):
        self.start(job, "pwd", cwd="/no/such folder")
        self.ended(job)
        assert (job / "out").read_text().strip() == os.path.realpath(os.path.expanduser("~"))
        assert "there is no folder /no/such folder here" in (job / "err").read_text()

    def test_a_job_is_a_session_of_its_own_and_hears_every_signal(self, job):
        self.start(job, "python3", "-c", "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)")
        self.ended(job)
        assert (job / "out").read_text() == "False\n"

    def test_a_job_that_is_asked_to_end_may_end_in_order(self, job):
        code = (
            "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [15]); print('up', flush=True); "
            "signal.sigwait([15]); sys.exit(5)"
        )
        self.start(job, "python3", "-c", code)
        assert wait_until(lambda: (job / "out").read_text() == "up\n", PATIENCE_S)
        assert self.look(job) == Sight(Look.RUNNING)
        self.run(END, job)
        assert self.ended(job) == Sight(Look.ENDED, 5)

    def test_killing_ends_the_whole_session_however_deaf(self, job):
        self.start(job, "x", script="trap '' TERM; (trap '' TERM; sleep 100; :) & sleep 100 & sleep 100; :")
        assert wait_until(lambda: len(self.session(job)) >= 5, PATIENCE_S)
        self.run(END, job)
        assert self.look(job) == Sight(Look.RUNNING)
        self.run(KILL, job)
        assert self.ended(job) == Sight(Look.GONE)
        assert wait_until(lambda: not self.session(job), PATIENCE_S)

    def test_a_number_that_has_come_to_mean_another_process_is_left_alone(self, job):
        self.start(job, "sleep", "100")
        pid = (job / "pid").read_text().split()[0]
        (job / "pid").write_text(f"{pid} 1\n")  # as if it had begun long ago
        assert self.look(job) == Sight(Look.GONE)
        self.run(END, job)
        self.run(KILL, job)
        assert self.session(job)
        os.killpg(int(pid), signal.SIGKILL)

    def test_a_start_after_the_end_does_nothing(self, job):
        self.run(END, job)
        for name, content in job_files(str(job), "/", ("true",), "", {}).items():
            (job / name).write_bytes(content)
        assert self.run(START, job) == "it was cancelled before it started\n"

    def test_a_job_that_was_never_there_is_missing_and_ended_without_a_word(self, tmp_path):
        nowhere = tmp_path / "nowhere"
        assert self.look(nowhere) == Sight(Look.MISSING)
        assert self.run(END, nowhere) == self.run(KILL, nowhere) == ""
        assert not nowhere.exists()
