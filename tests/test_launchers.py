"""Launchers: the text that they make, and what it does when bash reads it; the programs in it are stand-ins."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from typing import ClassVar

import pytest

from hpcpool.errors import ConfigError
from hpcpool.launchers import (
    AprunLauncher,
    JsrunLauncher,
    Launcher,
    MpiExecLauncher,
    MpiRunLauncher,
    SingleNodeLauncher,
    SrunLauncher,
    SSHLauncher,
    WrappedLauncher,
    launcher_class,
    usual_launcher,
)
from tests.stand_ins import StandIns

pytestmark = pytest.mark.once

NODES = "SLURM_JOB_NODELIST"
#: Those that reach several nodes, with the variables that tell them which.
STARTERS = [SrunLauncher(), MpiExecLauncher(), MpiRunLauncher(), AprunLauncher(), JsrunLauncher(), SSHLauncher()]
ALL = [SingleNodeLauncher(), *STARTERS, WrappedLauncher("nice -n 3")]
#: What quoting can go wrong with.
HARD = ["it's", 'a "b" $HOME `x` \\ \\\\ !', "*", "", "a\tb  c", "ä; exit 9 &", "%s {x} #"]

as_ids = {"ids": lambda launcher: launcher.kind}


@pytest.fixture
def stand_ins(tmp_path) -> StandIns:
    return StandIns(tmp_path)


#: Says that it runs, and when it is told to end. (A shell that forks all the time, instead, loses a TERM now and then.)
WAITS_FOR_TERM = "trap 'kill $!; echo ended; exit 0' TERM; sleep 60 > /dev/null 2>&1 & echo ready; wait"


def bash(text: str) -> str:
    return shlex.join(["bash", "-c", text])


@pytest.mark.parametrize("launcher", ALL, **as_ids)
def test_words_with_anything_in_them_arrive_as_they_were(stand_ins, launcher):
    command = shlex.join(["bash", "-c", 'printf "%s\\0" "$@"', "x", *HARD])
    code, stdout, stderr = stand_ins.run(launcher.wrap(command, 1), **{NODES: "n1"})
    assert (code, stderr) == (0, "")
    assert stdout.split("\0")[:-1] == HARD


@pytest.mark.parametrize("launcher", STARTERS, **as_ids)
def test_each_node_runs_the_command_once(stand_ins, launcher):
    code, stdout, _ = stand_ins.run(launcher.wrap(bash("echo on $RANK"), 3), **{NODES: "0,1,2"})
    assert code == 0
    assert sorted(stdout.splitlines()) == ["on 0", "on 1", "on 2"]


@pytest.mark.parametrize("launcher", [one for one in STARTERS if not isinstance(one, SSHLauncher)], **as_ids)
def test_a_manager_is_no_rank_of_an_mpi_program_and_what_the_user_says_of_mpi_stays(stand_ins, launcher):
    """What calls start there would take itself for this rank, and wait for the others for ever."""
    command = bash("compgen -e | grep -E '^(OMPI|PMI|HYD|SLURM_STEP_ID)' | sort | xargs")
    own = {"OMPI_MCA_btl": "tcp,self", "PMI_DEBUG": "1"}
    code, stdout, stderr = stand_ins.run(launcher.wrap(command, 2), **own)
    assert (code, stdout) == (0, "OMPI_MCA_btl PMI_DEBUG\n" * 2), stderr


@pytest.mark.parametrize("launcher", STARTERS, **as_ids)
def test_a_node_that_fails_ends_no_other_and_the_end_is_that_of_the_last(stand_ins, tmp_path, launcher):
    go = tmp_path / "go"
    os.mkfifo(go)
    # Node 1 writes into the pipe that node 0 reads from when it is already failing.
    command = bash(
        f'if [ $RANK = 0 ]; then read -r word < {go}; echo "$word"; else echo bad >&2; echo late > {go}; exit 3; fi'
    )
    code, stdout, stderr = stand_ins.run(launcher.wrap(command, 2), **{NODES: "0,1"})
    assert stdout == "late\n"
    assert "bad" in stderr
    if isinstance(launcher, SrunLauncher):
        assert code == 3
    elif isinstance(launcher, SSHLauncher):
        assert (code, "hpcpool: on 1 the manager ended with code 3" in stderr) == (3, True)
    else:  # they would end all others
        assert (code, "the manager ended with code 3" in stderr) == (0, True)


@pytest.mark.parametrize("launcher", [SingleNodeLauncher(), *STARTERS], **as_ids)
def test_the_end_is_passed_on_and_waited_for(stand_ins, launcher):
    command = bash(WAITS_FOR_TERM)
    process = stand_ins.start(f"exec {launcher.wrap(command, 1)}", **{NODES: "0"})
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "ended\n"), stderr


def test_the_far_side_of_ssh_ends_when_the_near_side_is_killed(stand_ins):
    command = bash(WAITS_FOR_TERM)
    process = stand_ins.start(f"exec {SSHLauncher().wrap(command, 1)}", **{NODES: "0"})
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.communicate(timeout=60)[0] == "ended\n"


def test_a_host_that_cannot_be_reached_ends_no_other(stand_ins):
    code, stdout, stderr = stand_ins.run(SSHLauncher().wrap(bash("echo on $RANK"), 2), **{NODES: "gone,n2"})
    assert (code, stdout) == (255, "on n2\n")
    assert "No route to host" in stderr
    assert "hpcpool: on gone the manager ended with code 255" in stderr


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "tcsh"])
def test_any_login_shell_understands_what_ssh_brings(stand_ins, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    command = shlex.join(["bash", "/some path/node.sh"])
    code, _, stderr = stand_ins.run(SSHLauncher().wrap(command, 1), **{NODES: "n1"}, LOGIN_SHELL=shell)
    assert (code, "bash: /some path/node.sh: No such file or directory" in stderr) == (127, True)


@pytest.mark.parametrize(
    ("variable", "content"),
    [
        ("PBS_NODEFILE", "n1\nn1\nn2\n"),
        ("OAR_NODEFILE", "n1\nn1\nn2\nn2\n"),
        ("COBALT_NODEFILE", "n1\nn2\n"),
        ("PE_HOSTFILE", "n1 4 all.q@n1 UNDEFINED\nn2 4 all.q@n2 UNDEFINED\n"),
        ("LSB_DJOB_HOSTFILE", "n1\nn1\nn2\n"),
        ("LSB_HOSTS", None),
        ("SLURM_JOB_NODELIST", None),
    ],
)
def test_the_hosts_are_those_of_the_batch_system_each_once(stand_ins, tmp_path, variable, content):
    value = {"LSB_HOSTS": "n1 n1 n2", "SLURM_JOB_NODELIST": "n1,n2"}.get(variable, str(tmp_path / "hosts"))
    if content is not None:
        (tmp_path / "hosts").write_text(content)
    code, stdout, stderr = stand_ins.run(SSHLauncher().wrap(bash("echo $RANK"), 2), **{variable: value})
    assert (code, sorted(stdout.split()), stderr) == (0, ["n1", "n2"], "")


def test_a_number_of_hosts_that_is_not_the_block_s_is_told(stand_ins):
    code, stdout, stderr = stand_ins.run(SSHLauncher().wrap(bash("echo $RANK"), 3), **{NODES: "n1,n2"})
    assert (code, sorted(stdout.split())) == (0, ["n1", "n2"])
    assert stderr == "hpcpool: the block has 3 nodes, its batch system names n1 n2\n"


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        (
            SrunLauncher("--label"),
            "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpu-bind=none --mpi=none --export=ALL "
            "--kill-on-bad-exit=0 --no-kill --wait=0 --label",
        ),
        (MpiExecLauncher("-f $HOSTS"), "mpiexec -n 2 -ppn 1 -f the-file"),
        (MpiRunLauncher("--tag-output"), "mpirun -n 2 --map-by ppr:1:node --bind-to none --tag-output"),
        (AprunLauncher("-j 2"), "aprun -n 2 -N 1 -cc none -b -j 2"),
        (JsrunLauncher("-d packed"), "jsrun -n 2 -r 1 -a 1 -c ALL_CPUS -g ALL_GPUS -b none -d packed"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_options_of_each_program_come_first_and_the_user_s_last(stand_ins, launcher, words):
    stand_ins.run(launcher.wrap(bash("true"), 2), HOSTS="the-file")
    (call,) = stand_ins.calls()
    assert call[: len(words.split())] == words.split()
    assert call[len(words.split())] in ("bash", "env")


def test_ssh_gets_the_user_s_options_too(stand_ins):
    stand_ins.run(SSHLauncher("-p 2222 -A").wrap("true", 1), **{NODES: "n1"})
    (call,) = [call for call in stand_ins.calls() if call[0] == "ssh"]
    assert call[-5:-1] == ["-p", "2222", "-A", "n1"] or call[-4:-1] == ["2222", "-A", "n1"]


def test_srun_lets_other_steps_share_the_nodes(stand_ins):
    _, stdout, _ = stand_ins.run(SrunLauncher().wrap(bash("echo $SLURM_OVERLAP"), 1))
    assert stdout == "1\n"


def test_a_program_of_the_user_s_can_know_the_number_of_nodes(stand_ins):
    launcher = WrappedLauncher("mpirun -n $HPCPOOL_NODES_PER_BLOCK")
    _, stdout, _ = stand_ins.run(launcher.wrap(bash("echo $RANK"), 2), HPCPOOL_NODES_PER_BLOCK="2")
    assert sorted(stdout.split()) == ["0", "1"]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: SrunLauncher(overrides=3), "SrunLauncher.overrides is 3; valid: text, words for the shell"),
        (lambda: MpiExecLauncher("-x 'a"), 'MpiExecLauncher.overrides is "-x \'a"; it is not words for the shell'),
        (lambda: MpiRunLauncher("a\nb"), "MpiRunLauncher.overrides is 'a\\nb'; it must be one line"),
        (lambda: WrappedLauncher(" "), "WrappedLauncher.prepend is ' '; it must name a program"),
        (lambda: SSHLauncher(program=""), "SSHLauncher.program is ''; it must name a program"),
    ],
)
def test_what_the_shell_could_not_read_is_refused(make, problem):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("launcher", ALL, **as_ids)
def test_each_is_a_launcher_that_is_found_by_its_kind(launcher):
    assert isinstance(launcher, Launcher)
    assert launcher_class(launcher.kind) is type(launcher)


def test_a_kind_that_does_not_exist_is_an_error_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"no launcher of kind 'mpiexe'; did you mean 'mpiexec'\? \(known: single, srun"
    ):
        launcher_class("mpiexe")


class Slurm:
    kind: ClassVar[str] = "slurm"


class OwnIdea:
    kind: ClassVar[str] = "slurm"
    default_launcher = MpiRunLauncher()


@pytest.mark.parametrize(
    ("provider", "nodes", "launcher"),
    [
        (Slurm(), 1, SingleNodeLauncher()),
        (Slurm(), 2, SrunLauncher()),
        (OwnIdea(), 2, MpiRunLauncher()),
        (OwnIdea(), 1, SingleNodeLauncher()),
        (object(), 2, SSHLauncher()),
    ],
)
def test_the_usual_launcher_fits_the_provider_and_the_number_of_nodes(provider, nodes, launcher):
    assert usual_launcher(provider, nodes) == launcher


def test_the_text_is_one_line_of_words_where_it_can_be():
    for launcher in ALL:
        done = subprocess.run(
            ["bash", "-n", "-c", f"{launcher.wrap('true', 2)} & wait"], capture_output=True, check=False
        )
        assert done.stderr == b""
