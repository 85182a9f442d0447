"""Jobs on a machine without a batch system, as shell text: how one is started, looked at and ended. Pure.

Each job has a folder of its own, and what is known of it is in there:

- `pid`: the leader of its session, and when that began (in the kernel's ticks): a number may come to mean another
  process, but not with the same beginning.
- `code`: its exit code, once it is over.
- `cancelled`: it is to end; a start that comes late does nothing.
- `out`, `err`: what it printed.

A job is a session of its own, so neither the end of the connection that started it nor that of its shell ends it.
"""

from __future__ import annotations

import enum
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

JOB_SCRIPT, BODY = "job.sh", "body.sh"

# The programs are for any POSIX shell. (In dash, `kill -TERM -- -1` is an error, and `kill -s TERM -- -1` is not.)

#: Shell functions for the programs below: how a process began (empty: it is not there, or only its entry is), and
#: whether the leader of a job's session still lives.
_FUNCTIONS = """\
beginning() {
    stat=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) || return 0
    case $stat in Z*|X*|"") ;; *) echo "$stat" | cut -d' ' -f20 ;; esac
}
is_alive() {
    read -r pid begun <"$1/pid" 2>/dev/null && [ -n "$begun" ] && [ "$(beginning "$pid")" = "$begun" ]
}
"""

#: Starts the job of a folder ($1), and says `started`, or why not.
START = (
    _FUNCTIONS
    + """\
umask 077
[ -r /proc/self/stat ] || { echo "there is no /proc on this machine"; exit 1; }
command -v setsid >/dev/null || { echo "there is no setsid (package util-linux) on this machine"; exit 1; }
[ ! -e "$1/cancelled" ] || { echo "it was cancelled before it started"; exit 1; }
# Not with `&`: then the job would ignore SIGINT. This returns when the job closes descriptor 3, at its end at last.
said=$(setsid -f sh "$1/job.sh" 3>&1 </dev/null >"$1/out" 2>"$1/err")
[ "$said" = started ] || { cat "$1/err"; exit 1; }
echo started
"""
)

#: Says of the job of each folder where it is, a line each.
LOOK = (
    _FUNCTIONS
    + """\
for job in "$@"; do
    if [ ! -d "$job" ]; then echo missing
    elif is_alive "$job"; then echo running
    elif [ -s "$job/code" ]; then echo "ended $(cat "$job/code")"
    else echo gone; fi
done
"""
)

#: Asks the job of each folder to end: all of its leader's process group, which its calls do not belong to.
END = (
    _FUNCTIONS
    + """\
for job in "$@"; do
    [ -d "$job" ] || continue
    : >"$job/cancelled"
    is_alive "$job" && kill -s TERM -- "-$pid"
done
exit 0
"""
)

#: Kills every process of the session of each folder's job, until a look finds no new one. Where the leader's number
#: means another process by now, nothing is left of the session: else the number would not be free.
KILL = (
    _FUNCTIONS
    + """\
for job in "$@"; do
    [ -d "$job" ] || continue
    : >"$job/cancelled"
    read -r pid begun <"$job/pid" 2>/dev/null || continue
    now=$(beginning "$pid")
    [ -z "$now" ] || [ "$now" = "$begun" ] || continue
    before=
    while members=$(cat /proc/[0-9]*/stat 2>/dev/null |
            awk -v sid="$pid" '{pid = $1; sub(/.*\\) /, ""); if ($4 == sid && $1 !~ /[ZX]/) print pid}') &&
            [ -n "$members" ] && [ "$members" != "$before" ]; do
        kill -s KILL $members 2>/dev/null
        before=$members
    done
done
exit 0
"""
)


class Look(enum.Enum):
    """What a look at a job finds."""

    RUNNING = "running"
    #: It has ended and has written its exit code.
    ENDED = "ended"
    #: It has ended and has not: it was killed, or the machine was started anew.
    GONE = "gone"
    #: Its folder is not there.
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Sight:
    """A job as it was seen."""

    look: Look
    #: Of a job that has ended; negative: the signal that ended it.
    exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        return self.look is not Look.RUNNING


def job_files(folder: str, cwd: str, command: Sequence[str], script: str, env: Mapping[str, str]) -> dict[str, bytes]:
    """What `START` needs in the folder of a job.

    Args:
        cwd: where the command starts; where there is no such folder, it starts in the home directory.
        command: its argv.
        script: shell lines to run with bash in place of the command; may be empty.
        env: added to its environment.
    """
    run = ("/bin/bash", f"{folder}/{BODY}") if script else command
    place = shlex.quote(cwd)
    here = shlex.quote(folder)
    lines = [
        _FUNCTIONS,
        f'echo "$$ $(beginning $$)" >{here}/pid.new && mv {here}/pid.new {here}/pid && echo started >&3',
        "exec 3>&-",
        f'cd -- {place} 2>/dev/null || {{ cd; echo "there is no folder "{place}" here: it starts in $PWD" >&2; }}',
        *(f"export {name}={shlex.quote(value)}" for name, value in env.items()),
        # Asked to end, this shell waits for the command, which was asked as well.
        "trap : TERM",
        shlex.join(run),
        "code=$?",
        f"echo $code >{here}/code.new && mv {here}/code.new {here}/code",
    ]
    files = {JOB_SCRIPT: "\n".join([*lines, ""]).encode()}
    return files | ({BODY: script.encode()} if script else {})


def read_look(text: str, jobs: int) -> list[Sight] | None:
    """What `LOOK` said of so many jobs; None: that is not what it says."""
    lines = text.split("\n")[:-1]
    if len(lines) != jobs:
        return None
    sights = [_sight(line) for line in lines]
    return None if None in sights else [sight for sight in sights if sight is not None]


def _sight(line: str) -> Sight | None:
    if found := re.fullmatch(r"ended ([0-9]{1,3})", line):
        code = int(found[1])
        return Sight(Look.ENDED, 128 - code if 128 < code <= 192 else code)
    return Sight(Look(line)) if line in ("running", "gone", "missing") else None
