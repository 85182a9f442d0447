"""Shell text that runs one command and stays with it: what the shell is told to end, the command is told; pure text."""

from __future__ import annotations

#: What batch systems and terminals send to a job that shall end. USR1, USR2 and XCPU are warnings that its time is
#: nearly over (Grid Engine, LSF, Slurm's --signal); a shell that does not trap them dies of them and leaves its
#: children behind.
SIGNALS = "TERM INT HUP USR1 USR2 XCPU"


#: How the command is told to end.
_TERM = "kill -TERM $pid 2> /dev/null"


def supervision(command: str, tell: str = _TERM) -> tuple[str, ...]:
    """Return statements for bash that run `command` to its end and leave its exit code in `$code`.

    None of them has a newline or a single quote, so that they can be joined and quoted again.

    Args:
        command: one program with its words quoted for the shell: what is sent to the shell reaches it as TERM.
        tell: what else is to be run when it shall end; `$pid` is its process.
    """
    quoted = tell.replace("$", "\\$")
    return (
        # A signal ends `wait` before the command has ended: then `woken` is set, and it is waited for again.
        f'pid=; woken=; trap "woken=1; [ -z \\"\\$pid\\" ] || {quoted}" {SIGNALS}',
        f"{command} & pid=$!",
        # One that came before `pid` was known.
        f'[ -z "$woken" ] || {tell}',
        'woken=1; while [ -n "$woken" ]; do woken=; wait $pid; code=$?; done',
    )


def supervised(command: str, tell: str = _TERM) -> str:
    """Return the statements of `supervision` as one line."""
    return "; ".join(supervision(command, tell))
