"""Small scripts that stand for srun, mpiexec, ssh and others: they write down how they were called and do the essence.

Each runs with the others on PATH, in a folder of its own; `calls` returns what they wrote.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

#: Writes its arguments down, each ended by a null character.
_NOTES = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" >> "$STAND_INS/$$.call"
"""

#: Runs the command behind its options on as many "nodes" as it was told with -n or --ntasks=, in parallel.
_STARTER = (
    _NOTES
    + """
while [ $# -gt 0 ]; do
  case $1 in
    -n) count=$2; shift;;
    --ntasks=*) count=${1#*=};;
    bash|env) break;;
  esac
  shift
done
pids=() all= told= woken=
if [ "${0##*/}" = srun ]; then
  echo $$ > "$STAND_INS/srun.pid"
  trap 'echo "srun: forcing job termination" >&2; kill -KILL "${pids[@]}"' TERM
else
  trap 'woken=1 told=1; [ -z "$all" ] || kill -TERM "${pids[@]}"' TERM
fi
trap 'woken=1 told=1; [ -z "$all" ] || kill -TERM "${pids[@]}"' USR2
# What makes a process a rank of an MPI program; srun is asked not to do that, and says no more than its step.
export SLURM_STEP_ID=0
[ "${0##*/}" = srun ] || export PMI_RANK=0 PMIX_NAMESPACE=x OMPI_COMM_WORLD_RANK=0 OMPI_MCA_ess=pmi HYDI_CONTROL_FD=4
for ((rank = 0; rank < count; rank++)); do RANK=$rank "$@" & pids+=($!); done
all=1
[ -z "$told" ] || kill -TERM "${pids[@]}"  # one of them was quick to say that it runs
worst=0
for pid in "${pids[@]}"; do
  # A signal ends `wait` before the process has ended, or just as it does.
  woken=1; while [ -n "$woken" ]; do woken=; wait "$pid"; code=$?; done
  [ $code -le $worst ] || worst=$code
done
exit $worst
"""
)

#: Has the user's login shell read one string, as sshd does, and knows no host named "gone".
_SSH = (
    _NOTES
    + """
while [[ $1 = -* ]]; do [ $1 = -o ] && shift; shift; done
host=$1; shift
[ "$host" != gone ] || { echo "ssh: connect to host gone port 22: No route to host" >&2; exit 255; }
RANK=$host exec ${LOGIN_SHELL:-sh} -c "$*"
"""
)
_SCONTROL = _NOTES + 'echo "$3" | tr , "\\n"\n'
#: Slurm's daemons signal the tasks; here `srun` does it for them.
_SCANCEL = _NOTES + 'kill -USR2 "$(cat "$STAND_INS/srun.pid")"\n'

_SCRIPTS = {
    **dict.fromkeys(("srun", "mpiexec", "mpirun", "aprun", "jsrun"), _STARTER),
    "ssh": _SSH,
    "scontrol": _SCONTROL,
    "scancel": _SCANCEL,
}


class StandIns:
    """The scripts, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name, text in _SCRIPTS.items():
            script = folder / name
            script.write_text(text, encoding="utf-8")
            script.chmod(0o755)

    def environment(self, **variables: str) -> dict[str, str]:
        """This process's environment, with the scripts in front, and without a batch system's variables."""
        path = f"{self._folder}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "STAND_INS": str(self._folder), **variables}

    def start(self, text: str, **variables: str) -> subprocess.Popen[str]:
        """Have bash read the text."""
        return subprocess.Popen(
            ["bash", "-c", text],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**variables),
        )

    def run(self, text: str, **variables: str) -> tuple[int, str, str]:
        """Have bash read the text to its end: exit code, stdout, stderr."""
        process = self.start(text, **variables)
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, stdout, stderr

    def calls(self) -> list[list[str]]:
        """The name and arguments of each script that was called."""
        return [path.read_text().split("\0")[:-1] for path in sorted(self._folder.glob("*.call"))]
