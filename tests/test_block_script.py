"""The script of a block's job: its text, and what happens when bash reads it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from hpcpool import block_script as module
from hpcpool.block_script import block_script
from hpcpool.containers import Container
from hpcpool.launchers import SingleNodeLauncher, SrunLauncher
from hpcpool.processes.start_command import start_command
from tests.stand_ins import StandIns

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parent / "data"
ROOT = str(Path(module.__file__).parent.parent)


@pytest.fixture
def stand_ins(tmp_path) -> StandIns:
    folder = tmp_path / "bin"
    folder.mkdir()
    return StandIns(folder)


@pytest.fixture
def block_dir(tmp_path) -> str:
    return str(tmp_path / "it's a block")


def script(block_dir: str, *words: str, **options) -> str:
    """A block of one node whose manager is this interpreter with `words`."""
    given = {"nodes": 1, "launcher": SingleNodeLauncher()} | options
    return block_script((sys.executable, *words), block_dir=block_dir, **given)


def test_the_text_is_that_of_the_golden_file():
    command = (
        "/env/bin/python",
        "-O",
        "-P",
        f"{ROOT}/hpcpool/processes/start.py",
        "manager",
        "/scratch/b-0/connection",
        "b-0",
    )
    text = block_script(
        command,
        nodes=2,
        block_dir="/scratch/b-0",
        worker_init="module load gcc\nsource ~/env.sh\n",
        env={"OMP_NUM_THREADS": "4", "TITLE": "it's"},
        launcher=SrunLauncher(),
    )
    assert text.replace(ROOT, "@ROOT@") == (GOLDEN / "block_script.sh").read_text(encoding="utf-8")


def test_the_manager_s_arguments_and_surroundings_arrive(stand_ins, block_dir):
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['A'], os.environ['B'], os.environ['C'])"
    text = script(
        block_dir,
        *("-c", code, "it's", 'a "b" $HOME'),
        worker_init="B=\"$A here\"; export B C\nC='two\nlines'",
        env={"A": "ä '$x'\n", "C": "old"},
    )
    assert stand_ins.run(text) == (
        0,
        f"[\"it's\", 'a \"b\" $HOME'] {block_dir} ä '$x'\n ä '$x'\n here two\nlines\n",
        "",
    )


def test_each_node_runs_worker_init_and_a_manager(stand_ins, block_dir):
    text = script(
        block_dir,
        # In one piece: several write to the same pipe.
        *("-c", "import os; os.write(1, os.path.expandvars('$RANK $MADE $HPCPOOL_NODES_PER_BLOCK\\n').encode())"),
        worker_init="export MADE=on-$RANK",
        nodes=2,
        launcher=SrunLauncher(),
    )
    code, stdout, stderr = stand_ins.run(text)
    assert (code, sorted(stdout.splitlines()), stderr) == (0, ["0 on-0 2", "1 on-1 2"], "")


def test_a_node_s_script_that_another_job_of_the_block_reads_is_not_changed_under_it(stand_ins, block_dir):
    stand_ins.run(script(block_dir, "-c", "pass"))
    read_by_another = Path(block_dir, "kept")
    os.link(Path(block_dir, "node.sh"), read_by_another)
    before = read_by_another.read_text(encoding="utf-8")
    assert stand_ins.run(script(block_dir, "-c", "print('runs')"))[1] == "runs\n"
    assert read_by_another.read_text(encoding="utf-8") == before
    assert sorted(path.name for path in Path(block_dir).iterdir()) == ["kept", "node.sh"]


def test_the_exit_code_is_the_manager_s(stand_ins, block_dir):
    assert stand_ins.run(script(block_dir, "-c", "raise SystemExit(7)"))[0] == 7


@pytest.mark.parametrize(
    "lines", ["false", "echo $UNSET_VARIABLE; grep x /dev/null", "set -eu; true", "cd /", "true \\"]
)
def test_lines_that_fail_without_ending_the_shell_do_no_harm(stand_ins, block_dir, lines):
    code, stdout, stderr = stand_ins.run(script(block_dir, "-c", "print('runs')", worker_init=lines))
    assert (code, stdout.strip(), stderr) == (0, "runs", "")


@pytest.mark.parametrize(
    ("lines", "code", "said"),
    [
        ("echo no such module >&2; exit 3", 3, "no such module"),
        ("set -e\nls /no/such/folder", 2, "/no/such/folder"),
        ("set -u\necho $UNSET_VARIABLE", 1, "UNSET_VARIABLE: unbound variable"),
        ("if true; then", 2, "syntax error"),
        ("exit 0", 1, ""),
        ("cat << END", 1, ""),
    ],
)
def test_lines_that_end_the_shell_are_named_with_their_code_and_their_words(stand_ins, block_dir, lines, code, said):
    seen, stdout, stderr = stand_ins.run(script(block_dir, "-c", "print('runs')", worker_init=lines))
    assert (seen, stdout) == (code, "") or lines == "cat << END"
    assert said in stderr
    assert ": worker_init ended with code " in stderr
    assert stderr.rstrip().endswith("so no manager was started")


def test_an_interpreter_that_is_not_there_is_named_with_what_to_do(stand_ins, block_dir):
    code, _, stderr = stand_ins.run(script(block_dir, "-c", "", python="/no/such/python"))
    assert code == 127
    assert (
        ": there is no interpreter /no/such/python; name one that is there with the option python of the node p"
        in stderr
    )


def test_an_interpreter_that_worker_init_provides_is_found_by_its_name(stand_ins, block_dir, tmp_path):
    folder = tmp_path / "env"
    folder.mkdir()
    (folder / "our-python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (folder / "our-python").chmod(0o755)
    init = f"PATH={shlex.quote(str(folder))}:$PATH"
    text = script(block_dir, "-c", "print('runs')", worker_init=init, python="our-python")
    assert stand_ins.run(text) == (0, "runs\n", "")


def test_an_interpreter_that_cannot_import_hpcpool_says_why(stand_ins, block_dir, tmp_path):
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "msgspec.py").write_text("raise ImportError('msgspec was built for another Python')")
    text = script(block_dir, "-c", "print('runs')", env={"PYTHONPATH": str(shadow)})
    code, stdout, stderr = stand_ins.run(text)
    assert (code, stdout) == (126, "")
    assert "ImportError: msgspec was built for another Python" in stderr
    assert f"the interpreter {sys.executable} cannot run hpcpool (see above); install hpcpool for it, or name" in stderr


def test_an_interpreter_that_is_too_old_says_so(stand_ins, block_dir, tmp_path):
    old = tmp_path / "python"
    old.write_text(
        f"#!/bin/bash\nexec {sys.executable} -c \"import sys; sys.version_info = (3, 6); sys.version = '3.6.8'; $2\"\n"
    )
    old.chmod(0o755)
    code, _, stderr = stand_ins.run(script(block_dir, python=str(old)))
    assert (code, "hpcpool needs Python 3.11 or newer, this is 3.6.8" in stderr) == (126, True)


def test_a_user_s_file_in_the_folder_of_worker_init_is_not_imported(stand_ins, block_dir, tmp_path):
    (tmp_path / "msgspec.py").write_text("raise ImportError('not this one')")
    text = script(block_dir, "-c", "print('runs')", worker_init=f"cd {shlex.quote(str(tmp_path))}")
    assert stand_ins.run(text) == (0, "runs\n", "")


def test_a_folder_that_cannot_be_made_is_named(stand_ins, tmp_path):
    (tmp_path / "file").touch()
    code, _, stderr = stand_ins.run(script(str(tmp_path / "file" / "b"), "-c", ""))
    assert code == 1
    assert f"hpcpool: cannot write into the folder of the block, {tmp_path}/file/b, on" in stderr


def test_the_script_of_a_node_is_the_user_s_alone(stand_ins, block_dir):
    stand_ins.run(script(block_dir, "-c", "", env={"PASSWORD": "x"}))
    assert os.stat(f"{block_dir}/node.sh").st_mode & 0o077 == 0


def test_a_line_that_would_end_the_script_of_the_node_does_not(stand_ins, block_dir):
    init = "cat << END_OF_NODE_SCRIPT > /dev/null\nx\nEND_OF_NODE_SCRIPT\nexport SEEN=1"
    text = script(block_dir, "-c", "import os; print(os.environ['SEEN'])", worker_init=init)
    assert stand_ins.run(text) == (0, "1\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_what_tells_the_job_to_end_tells_the_manager_and_its_end_is_waited_for(stand_ins, block_dir, number):
    code = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "os.write(1, b'ready\\n')\n"
        "signal.sigwait([signal.SIGTERM])\n"  # unlike pause(), also if it came just before
        "os.write(1, b'ending\\n')\n"
        "sys.exit(5)"
    )
    process = stand_ins.start(script(block_dir, "-c", code))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert (process.communicate(timeout=60)[0], process.returncode) == ("ending\n", 5)


def test_a_real_manager_s_command_passes_the_check(stand_ins, block_dir):
    """It ends because its connection file is not there, not because of the script."""
    command = start_command("manager", "/no/such/file", "b-0", -1, -1)
    code, _, stderr = stand_ins.run(script(block_dir, *command[1:]))
    assert (code, "/no/such/file" in stderr, "hpcpool: on" in stderr) == (1, True, False)


def test_a_container_sees_the_block_and_hpcpool(block_dir):
    command = start_command("manager", "/run/x", "b-0")
    text = block_script(
        command, nodes=1, block_dir="/scratch/b-0", launcher=SingleNodeLauncher(), container=Container("a.sif")
    )
    (line,) = [line for line in text.splitlines() if line.startswith("exec apptainer")]
    words = "exec apptainer exec --bind /scratch/b-0:/scratch/b-0 --bind"
    assert line.startswith(f"{words} {ROOT}:{ROOT} --pwd /scratch/b-0 a.sif /bin/sh -c ")
    assert "there is no interpreter python3 in a.sif" in text


def test_a_container_with_its_own_hpcpool_runs_that():
    command = start_command("manager", "/run/x", "b-0")
    container = Container("a.sif", has_hpcpool=True)
    text = block_script(
        command,
        nodes=1,
        block_dir="/scratch/b-0",
        launcher=SingleNodeLauncher(),
        container=container,
        python="/opt/python",
    )
    assert ROOT not in text
    assert "/opt/python" in text
    assert "-m hpcpool.processes.start manager /run/x b-0" in text
