"""Launchers: how a command gets from the first node of a block to each of its nodes. Shell text in, shell text out.

What goes in and what comes out is one program with its words quoted, as `shlex.join` makes it: so it can be wrapped
again, be started in the background, and be sent signals. Rules of this file:

- A command that fails ends no other. That a node dies ends no other where the program that starts them can be told so:
  `srun` and `ssh` can, `mpiexec` and its like cannot.
- The text ends when the last of them has ended.
- TERM to the process that the text starts ends all of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from hpcpool.errors import ConfigError
from hpcpool.supervision import SIGNALS, supervised

#: In Slurm: so that steps which calls start share the nodes with the one that this is, or that `mpirun` makes, instead
#: of waiting for its end. The variable and not the option: Slurm before 20.11 does not refuse it, and those steps have
#: it, too.
_OVERLAP = "env SLURM_OVERLAP=1"
#: In front of what `srun` runs: by this variable Open MPI takes a call that uses MPI for a rank of `srun`, and
#: ends it where it was built without Slurm's PMI. Source: `check_launch_environment` in Open MPI 4's schizo_slurm.c.
_NO_STEP = "env -u SLURM_STEP_ID"


@runtime_checkable
class Launcher(Protocol):
    """How the nodes of a block are reached: a frozen dataclass of plain values."""

    #: The word for this launcher in TOML files.
    kind: ClassVar[str]

    def wrap(self, command: str, nodes: int) -> str:
        """Return the command that runs `command` once on each node.

        Args:
            command: one program with its words quoted for the shell.
            nodes: how many nodes the block has, at least 1.
        """


@dataclass(frozen=True)
class SingleNodeLauncher:
    """The first node alone: for blocks of one node."""

    kind: ClassVar[str] = "single"

    def wrap(self, command: str, nodes: int) -> str:
        """Return the command as it is."""
        return command


@dataclass(frozen=True)
class SrunLauncher:
    """Slurm's `srun`: one task on each node, which may use all of it.

    Args:
        overrides: more options, which come last and so win, as words for the shell: "--cpu-bind=cores --label".
    """

    overrides: str = ""

    kind: ClassVar[str] = "srun"

    def __post_init__(self) -> None:
        _check_words(self, "overrides")

    def wrap(self, command: str, nodes: int) -> str:
        """Return the `srun` line. Source of the options: https://slurm.schedmd.com/srun.html."""
        options = (
            f"--nodes={nodes} --ntasks={nodes} --ntasks-per-node=1",
            # Cores are dealt out by the manager; MPI programs are steps of their own, not part of this one.
            "--cpu-bind=none --mpi=none",
            # #SBATCH --export=NONE would otherwise be inherited by this step, too.
            "--export=ALL",
            # A site may have set the opposite of these three: KillOnBadExit, WaitTime.
            "--kill-on-bad-exit=0 --no-kill --wait=0",
        )
        srun = _words(_OVERLAP, "srun", *options, self.overrides, _NO_STEP, command)
        # Told to end, srun kills its tasks. Slurm can be asked to tell the tasks instead.
        tell = "scancel --quiet --signal=TERM $SLURM_JOB_ID || kill -TERM $pid"
        return shlex.join(("bash", "-c", f"{supervised(srun, tell)}; exit $code"))


@dataclass(frozen=True)
class MpiExecLauncher:
    """The `mpiexec` of MPICH, Intel MPI, MVAPICH and Cray's PALS: one process on each node.

    It ends all of them when a node dies.

    Args:
        overrides: more options, as words for the shell.
    """

    overrides: str = ""

    kind: ClassVar[str] = "mpiexec"

    def __post_init__(self) -> None:
        _check_words(self, "overrides")

    def wrap(self, command: str, nodes: int) -> str:
        """Return the `mpiexec` line."""
        return _words(f"{_OVERLAP} mpiexec -n {nodes} -ppn 1", self.overrides, _as_rank(command))


@dataclass(frozen=True)
class MpiRunLauncher:
    """Open MPI's `mpirun`: one process on each node, bound to no core.

    It ends all of them when a node dies.

    Args:
        overrides: more options, as words for the shell: "--hostfile $PBS_NODEFILE".
    """

    overrides: str = ""

    kind: ClassVar[str] = "mpirun"

    def __post_init__(self) -> None:
        _check_words(self, "overrides")

    def wrap(self, command: str, nodes: int) -> str:
        """Return the `mpirun` line."""
        options = f"-n {nodes} --map-by ppr:1:node --bind-to none"
        return _words(_OVERLAP, "mpirun", options, self.overrides, _as_rank(command))


@dataclass(frozen=True)
class AprunLauncher:
    """Cray's `aprun` (ALPS): one process on each node, bound to no core.

    Args:
        overrides: more options, as words for the shell: "-j 2".
    """

    overrides: str = ""

    kind: ClassVar[str] = "aprun"

    def __post_init__(self) -> None:
        _check_words(self, "overrides")

    def wrap(self, command: str, nodes: int) -> str:
        """Return the `aprun` line."""
        # -b: bash is there on the nodes; it need not be copied to them.
        return _words(f"aprun -n {nodes} -N 1 -cc none -b", self.overrides, _as_rank(command))


@dataclass(frozen=True)
class JsrunLauncher:
    """IBM's `jsrun` (LSF on Summit and its like): one resource set on each node, with all its cores and GPUs.

    Args:
        overrides: more options, as words for the shell.
    """

    overrides: str = ""

    kind: ClassVar[str] = "jsrun"

    def __post_init__(self) -> None:
        _check_words(self, "overrides")

    def wrap(self, command: str, nodes: int) -> str:
        """Return the `jsrun` line."""
        options = f"-n {nodes} -r 1 -a 1 -c ALL_CPUS -g ALL_GPUS -b none"
        return _words("jsrun", options, self.overrides, _as_rank(command))


@dataclass(frozen=True)
class SSHLauncher:
    """`ssh` from the first node to each node of the block, itself too; it must let the user in without asking.

    The nodes are those that the batch system names: Slurm, PBS, Grid Engine, LSF, OAR or Cobalt. A node that cannot be
    reached, or is lost, ends no other.

    Args:
        overrides: more options of `ssh`, as words for the shell: "-o StrictHostKeyChecking=accept-new".
        program: what is run in the place of `ssh`, with the same arguments: "oarsh".
    """

    overrides: str = ""
    program: str = "ssh"

    kind: ClassVar[str] = "ssh"

    def __post_init__(self) -> None:
        _check_words(self, "overrides")
        _check_words(self, "program", least=1)

    def wrap(self, command: str, nodes: int) -> str:
        """Return a command that starts `ssh` for each host, and waits for all."""
        options = "-T -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
        ssh = _words(self.program, options, self.overrides)
        loop = "\n".join((_HOSTS, _SSH_LOOP.replace("@SSH@", ssh).replace("@NODES@", str(nodes))))
        return shlex.join(("bash", "-c", loop, "hpcpool-ssh", _until_stdin_ends(command)))


@dataclass(frozen=True)
class WrappedLauncher:
    """A program of yours in front of the command, which sees to it that it runs on each node.

    Args:
        prepend: the program and its options, as words for the shell; in them `$HPCPOOL_NODES_PER_BLOCK` is the number
            of nodes: "numactl --interleave=all", "our-mpirun -n $HPCPOOL_NODES_PER_BLOCK --one-per-node".
    """

    prepend: str

    kind: ClassVar[str] = "wrapped"

    def __post_init__(self) -> None:
        _check_words(self, "prepend", least=1)

    def wrap(self, command: str, nodes: int) -> str:
        """Return the command behind the program."""
        return _words(self.prepend, command)


_LAUNCHERS: tuple[type[Launcher], ...] = (
    SingleNodeLauncher,
    SrunLauncher,
    MpiExecLauncher,
    MpiRunLauncher,
    AprunLauncher,
    JsrunLauncher,
    SSHLauncher,
    WrappedLauncher,
)
_BY_KIND: Mapping[str, type[Launcher]] = {launcher.kind: launcher for launcher in _LAUNCHERS}


def launcher_class(kind: str) -> type[Launcher]:
    """Return the class of launchers of this kind.

    Raises:
        ConfigError: there is none.
    """
    if kind not in _BY_KIND:
        import difflib  # only a mistake needs it

        near = difflib.get_close_matches(kind, _BY_KIND, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no launcher of kind {kind!r}{hint} (known: {', '.join(_BY_KIND)})")
    return _BY_KIND[kind]


def usual_launcher(provider: object, nodes: int) -> Launcher:
    """Return the launcher for blocks whose node pool names none.

    Args:
        provider: where the blocks come from; its attribute `default_launcher`, if it has one, decides.
        nodes: how many nodes a block has; for one there is nothing to launch.
    """
    if nodes == 1:
        return SingleNodeLauncher()
    of_its_own = getattr(provider, "default_launcher", None)
    if isinstance(of_its_own, Launcher):
        return of_its_own
    match getattr(provider, "kind", ""):
        case "slurm":
            return SrunLauncher()
        case "cobalt":
            return AprunLauncher()
        case "ssh":  # each host is given the script
            return SingleNodeLauncher()
        case "oar":
            return SSHLauncher(program="oarsh")
        case _:  # it needs no module to be loaded
            return SSHLauncher()


def _words(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _check_words(owner: Launcher, name: str, least: int = 0) -> None:
    """Refuse what the shell could not read as words of one command."""
    value = getattr(owner, name)
    where = f"{type(owner).__name__}.{name} is {value!r}"
    if not isinstance(value, str):
        raise ConfigError(f"{where}; valid: text, words for the shell")
    if "\n" in value or "\0" in value:
        raise ConfigError(f"{where}; it must be one line")
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ConfigError(f"{where}; it is not words for the shell: {error}") from None
    if len(words) < least:
        raise ConfigError(f"{where}; it must name a program")


#: How the variables begin by which MPI's programs tell a process that it is a rank: Open MPI, PMI and PMIx, PRRTE,
#: MPICH and Intel MPI, PALS, ALPS, `jsrun`, and those that use `srun`. So, in bash, the names of all that there are.
_BEGINNINGS = "OMPI_ PMI PRTE_ HYD MPI_LOCAL PALS_ ALPS_APP_ JSM_NAMESPACE_ SLURM_STEP_ID"
_OF_RANKS = " ".join(f"${{!{begin}*}}" for begin in _BEGINNINGS.split())


def _as_rank(command: str) -> str:
    """The command for `mpiexec` and its like, which make a rank of an MPI program of whatever they start.

    Variables that were not there before are taken away: an MPI program in a call would take itself for this rank, and
    wait for the others. And it says how it failed instead of failing: they would end all the others.
    """
    forget = f'for name in {_OF_RANKS}; do case " $1 " in *" $name "*) ;; *) unset "$name" ;; esac; done'
    told = 'echo "hpcpool: on $(uname -n) the manager ended with code $code" >&2'
    script = f"{forget}; {supervised(command)}; [ $code = 0 ] || {told}"
    return f'{shlex.join(("bash", "-c", script, "hpcpool"))} "{_OF_RANKS}"'


def _until_stdin_ends(command: str) -> str:
    """For the far side of `ssh`: end the command when the connection, and with it stdin, comes to its end.

    Nothing else tells it: `sshd` sends no signal to what runs without a terminal, and a terminal would mix stderr into
    stdout. It is one line in single quotes, because the user's login shell reads it, whichever that is.
    """
    watch = "exec 3<&0; ( read -r _; kill -TERM $$ ) <&3 3<&- > /dev/null 2>&1 & watch=$!; exec 3<&-"
    return "exec " + shlex.join(("bash", "-c", f"{watch}; {supervised(command)}; kill $watch 2> /dev/null; exit $code"))


#: The hosts of the allocation, one a line, each once. No single quotes: it is quoted as a whole.
_HOSTS = r"""
hosts_of_allocation() {
  if [ -n "${SLURM_JOB_NODELIST:-}" ]; then scontrol show hostnames "$SLURM_JOB_NODELIST"
  elif [ -r "${OAR_NODEFILE:-}" ]; then cat "$OAR_NODEFILE"
  elif [ -r "${PBS_NODEFILE:-}" ]; then cat "$PBS_NODEFILE"
  elif [ -r "${PE_HOSTFILE:-}" ]; then cut -d " " -f 1 "$PE_HOSTFILE"
  elif [ -r "${LSB_DJOB_HOSTFILE:-}" ]; then cat "$LSB_DJOB_HOSTFILE"
  elif [ -n "${LSB_HOSTS:-}" ]; then printf "%s\n" $LSB_HOSTS
  elif [ -r "${COBALT_NODEFILE:-}" ]; then cat "$COBALT_NODEFILE"
  else uname -n; fi | awk "NF && ! seen[\$1]++ {print \$1}"
}
""".strip()

#: Starts `ssh` for each host and waits for all. stdin of each is a pipe that only this shell can write to, and nobody
#: does: when it closes it, or dies in whatever way, the far sides see the end of their stdin (see `_until_stdin_ends`).
_SSH_LOOP = f"""
hosts=($(hosts_of_allocation))
[ ${{#hosts[@]}} = @NODES@ ] || echo "hpcpool: the block has @NODES@ nodes, its batch system names ${{hosts[*]}}" >&2
folder=$(mktemp -d) && mkfifo "$folder/end" && exec 7<> "$folder/end" 8< "$folder/end" || exit 1
rm -r "$folder"
woken=; trap "woken=1; exec 7>&-" {SIGNALS}
pids=()
for host in "${{hosts[@]}}"; do @SSH@ "$host" "$1" <&8 7>&- 8<&- & pids+=($!); done
worst=0
for index in "${{!pids[@]}}"; do
  woken=1; while [ -n "$woken" ]; do woken=; wait "${{pids[index]}}"; code=$?; done
  [ $code = 0 ] || echo "hpcpool: on ${{hosts[index]}} the manager ended with code $code" >&2
  [ $code -le $worst ] || worst=$code
done
exit $worst
""".strip()
