"""The shell lines that a block's job runs: they prepare each of its nodes and start the manager there; pure text.

Two scripts. The block's runs once, on the first node: it writes the node's script into the block's folder, where all
nodes see it, and lets the launcher run it on each. A file, because `ssh`, `qrsh` and their like read the words that
they are given once more, and spoil quoted text. The node's script runs `worker_init`, looks whether the interpreter can
run hpcpool, and becomes the manager.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from hpcpool.containers import Container
from hpcpool.launchers import Launcher
from hpcpool.supervision import supervision

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
#: Where the package is found; beside it, most often, what it needs.
_ROOT = os.path.dirname(_PACKAGE)
_START = os.path.join(_PACKAGE, "processes", "start.py")

#: Exit codes of the node's script, as a shell has them: the interpreter is not there; it cannot run hpcpool.
NO_INTERPRETER, CANNOT_RUN = 127, 126


def block_script(
    command: Sequence[str],
    *,
    nodes: int,
    block_dir: str,
    worker_init: str = "",
    env: Mapping[str, str] | None = None,
    launcher: Launcher,
    container: Container | None = None,
    python: str | None = None,
    visible: Sequence[str] = (),
    is_installed: bool = False,
) -> str:
    """Return the lines, for bash, that run on the first node and return when the block is over.

    TERM (and what else tells a job that its time is over) is passed on to the launcher, whose end is waited for. The
    exit code is the launcher's.

    Args:
        command: starts the manager, as `start_command` makes it: the interpreter, its flags, and the rest.
        nodes: how many nodes the block has, at least 1.
        block_dir: the block's folder, an absolute path, the same on all nodes.
        worker_init: shell lines that each node runs before its manager. They run as they are, without `set -e`: a line
            that fails is no error of the whole, unless it ends the shell.
        env: environment variables that each node sets before `worker_init`, which may change them.
        launcher: runs the node's script on each node.
        container: what the manager runs in; `worker_init` runs outside.
        python: the interpreter on the nodes; None: the one of `command`, in a container `python3`.
        visible: what else a manager in a container must find inside: absolute paths.
        is_installed: outside of a container, hpcpool is one of the packages of `python`; False: it is where it is here.
    """
    if container is None:
        last = _manager_lines(command, python or command[0], "", is_installed=is_installed)
    else:
        last = [_contained(command, container, python or "python3", [block_dir, *visible], tuple(env or ()))]
    node = _node_script(block_dir, worker_init, env or {}, last)
    path = os.path.join(block_dir, "node.sh")
    end = _delimiter(node)
    # Where each job of a block runs this (HTCondor), another may be reading the file: it is put in its place whole.
    part = f"part={shlex.quote(path)}.$(uname -n).$$"
    written = f'mkdir -p {shlex.quote(block_dir)} && cat > "$part" && mv -f "$part" {shlex.quote(path)}'
    problem = f"hpcpool: cannot write into the folder of the block, {block_dir}, on"
    lines = (
        f"export HPCPOOL_NODES_PER_BLOCK={nodes}",
        "# What each node runs.",
        f"( umask 077 && {part} && {written} ) << '{end}' ||"
        f' {{ echo {shlex.quote(problem)} "$(uname -n)" >&2; exit 1; }}',
        node + end,
        "# Starts it on each node; what tells this job to end is passed on, and its end is waited for.",
        *supervision(launcher.wrap(shlex.join(("bash", path)), nodes)),
        "exit $code",
    )
    return "\n".join(lines) + "\n"


def _node_script(block_dir: str, worker_init: str, env: Mapping[str, str], last: Sequence[str]) -> str:
    """The lines that run on each node, with a newline at their end."""
    problem = f"hpcpool: the folder of the block, {block_dir}, is not there on"
    lines = (
        f'cd {shlex.quote(block_dir)} || {{ echo {shlex.quote(problem)} "$(uname -n)" >&2; exit 1; }}',
        *(f"export {name}={shlex.quote(value)}" for name, value in env.items()),
        *_prepared(worker_init),
        *last,
    )
    return "\n".join(lines) + "\n"


def _contained(
    command: Sequence[str], container: Container, python: str, visible: Sequence[str], variables: Sequence[str]
) -> str:
    """The line that becomes the manager in a container; the first of the visible folders is where it starts."""
    where = f" in {container.image}"
    inside = "\n".join(_manager_lines(command, python, where, is_installed=container.has_hpcpool))
    seen = visible if container.has_hpcpool else [*visible, _ROOT]
    argv = container.wrap(("/bin/sh", "-c", inside), visible=seen, cwd=visible[0], variables=variables)
    return f"exec {shlex.join(argv)}"


def _prepared(worker_init: str) -> list[str]:
    """The user's lines, and a word about them if they end the shell; the empty line is for a backslash at their end."""
    if not worker_init.strip():
        return []
    told = 'echo "hpcpool: on $(uname -n): worker_init ended with code $code, so no manager was started" >&2'
    ended = f"code=$?; {told}; [ $code != 0 ] || code=1; exit $code"
    return [f"trap '{ended}' EXIT", worker_init.rstrip("\n"), "", "trap - EXIT"]


def _manager_lines(command: Sequence[str], python: str, where: str, *, is_installed: bool) -> list[str]:
    """Lines for any shell that become the manager, or say why they cannot."""
    start = ("-m", "hpcpool.processes.start") if is_installed else (_START,)
    words = [part for word in command[1:] for part in (start if word == _START else (word,))]
    missing = (
        f"there is no interpreter {python}{where}; name one that is there with the option python of the node pool, or"
        " have worker_init provide it"
    )
    unfit = (
        f"the interpreter {python}{where} cannot run hpcpool (see above); install hpcpool for it, or name another one"
        " with the option python of the node pool"
    )
    return [
        f"command -v {shlex.quote(python)} > /dev/null || {_told(missing, NO_INTERPRETER)}",
        f"{shlex.join((python, '-c', _check(is_installed)))} || {_told(unfit, CANNOT_RUN)}",
        f"exec {shlex.join((python, *words))}",
    ]


def _told(problem: str, code: int) -> str:
    return f'{{ echo "hpcpool: on $(uname -n):" {shlex.quote(problem)} >&2; exit {code}; }}'


def _check(is_installed: bool) -> str:
    """Python code that finds out whether an interpreter can be a manager, in a way that old ones can read, too.

    The folder where it runs must not have a part in it: a manager is started with -P.
    """
    root = [] if is_installed else [_ROOT]
    return (
        "import sys; "
        'sys.version_info >= (3, 11) or sys.exit("hpcpool needs Python 3.11 or newer, this is " + sys.version); '
        f"sys.path[:] = [p for p in sys.path if p] + {root!r}; "
        "import hpcpool.processes.manager_process"
    )


def _delimiter(text: str) -> str:
    """A line that the text does not have, to end a here-document."""
    delimiter = "END_OF_NODE_SCRIPT"
    while delimiter in text.splitlines():
        delimiter += "_"
    return delimiter
