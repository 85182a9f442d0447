"""The command that starts a process of ours with this interpreter. What the process then does is not known here."""

from __future__ import annotations

import os
import sys

_START = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py")
#: Among the arguments of the interchange: it will host a node.
HOSTS_NODE = "--hosts-node"


def start_command(role: str, *arguments: object, executable: str | None = None) -> list[str]:
    """Return the command; the flags of this interpreter (`-O`, `-W`, `-X` ...) go along, as with `multiprocessing`.

    So they come down from the user's program to the workers, and a call runs there as it would here.
    """
    # Imported here, because the fork server seldom needs it.
    from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]

    flags = [flag for flag in _args_from_interpreter_flags() if flag != "-P"]  # it stands there anyway
    return [executable or sys.executable, *flags, "-P", _START, role, *map(str, arguments)]
