"""What stands in front of an MPI program so that it runs as so many ranks on these hosts; pure: names in, words out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: Set for a call that has nodes of its own: their names, with commas between them, and the number of ranks.
HOSTS_VARIABLE, RANKS_VARIABLE = "HPCPOOL_NODES", "HPCPOOL_RANKS"
#: How MPI programs are started, where the user knows better: a program and its options.
PROGRAM_VARIABLE = "HPCPOOL_MPI"
#: What a bash call finds the prefix in.
PREFIX_VARIABLE = "HPCPOOL_MPI_PREFIX"

#: What a rank inherits of the step that it belongs to. A program that finds them takes itself for one of those ranks.
_OF_A_STEP = (
    "OMPI_COMM_WORLD_",
    "OMPI_UNIVERSE_",
    "OMPI_MCA_ess",
    "OMPI_MCA_orte_",
    "OMPI_MCA_pmix",
    "PMI",
    "HYDI_",
    "PRTE_",
    # The cores of the manager, a whole node: there are versions of srun that then ask for as many for each rank.
    "SLURM_CPUS_PER_TASK",
)


class Step(NamedTuple):
    """What a call may start: so many ranks on these hosts."""

    hosts: tuple[str, ...]
    ranks: int


def step_of(environment: Mapping[str, str]) -> Step | None:
    """Return what the variables of a call say; None: it has no nodes of its own."""
    hosts = tuple(filter(None, environment.get(HOSTS_VARIABLE, "").split(",")))
    if not hosts:
        return None
    return Step(hosts, int(environment.get(RANKS_VARIABLE) or 0) or len(hosts))


def launch_prefix(
    hosts: Sequence[str], ranks: int, program: str = "mpirun", options: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the words in front of an MPI program: the first ranks on the first host, all hosts with about as many.

    Args:
        hosts: the nodes, at least one.
        ranks: how many processes, all together, at least 1.
        program: "mpirun" for Open MPI's, "mpiexec" for that of MPICH, Intel MPI and their like, "srun" for Slurm's; or
            the path of one of them.
        options: more options, which come last and so win.

    Raises:
        ValueError: there is no host or no rank, or the program is none of these.

    Example:
        >>> from hpcpool.mpi import launch_prefix
        >>> " ".join(launch_prefix(["n1", "n2"], 3))
        'mpirun --mca ras ^slurm,tm,gridengine,lsf -n 3 --host n1:2,n2:1'
    """
    if not hosts or ranks < 1:
        raise ValueError(f"an MPI step needs a host and a rank, not {len(hosts)} hosts and {ranks} ranks")
    used = hosts[:ranks]
    return (program, *_arguments(os.path.basename(program), used, ranks), *options)


def _arguments(kind: str, hosts: Sequence[str], ranks: int) -> tuple[str, ...]:
    each, more = divmod(ranks, len(hosts))
    most = each + (more > 0)
    names = ",".join(hosts)
    match kind:
        case "mpirun":
            slots = ",".join(f"{host}:{each + (index < more)}" for index, host in enumerate(hosts))
            # Without Open MPI's own look at the allocation: there it would find as many slots as there are managers.
            return ("--mca", "ras", "^slurm,tm,gridengine,lsf", "-n", str(ranks), "--host", slots)
        case "mpiexec":
            return ("-n", str(ranks), "-ppn", str(most), "-hosts", names)
        case "srun":
            size = (f"--nodes={len(hosts)}", f"--ntasks={ranks}", f"--ntasks-per-node={most}", f"--nodelist={names}")
            # The managers' own step has the same nodes, and would hand on its order of ranks, one on each node in turn.
            # stdin goes to the first rank, as with the others.
            return (*size, "--distribution=block", "--overlap", "--kill-on-bad-exit=1", "--input=0")
        case _:
            raise ValueError(f"hpcpool can start MPI programs with mpirun, mpiexec or srun, not with {kind!r}")


def program_of(environment: Mapping[str, str], mpiexec_says: str | None, has_srun: bool) -> tuple[str, ...]:
    """Return the program that starts MPI programs, and options for it.

    Args:
        environment: the variables of the call; `HPCPOOL_MPI` decides, if it is set.
        mpiexec_says: what `mpiexec --version` prints; None: there is none.
        has_srun: there is an `srun`.

    Raises:
        ValueError: there is nothing to start them with.
    """
    if chosen := shlex.split(environment.get(PROGRAM_VARIABLE, "")):
        return tuple(chosen)
    if mpiexec_says is not None:  # it fits the MPI library for sure; srun, only where Slurm was built for it
        is_open_mpi = any(name in mpiexec_says for name in ("Open MPI", "OpenRTE", "PRRTE"))
        return ("mpirun",) if is_open_mpi else ("mpiexec",)
    if has_srun:
        return ("srun",)
    raise ValueError(
        "there is neither mpiexec nor srun on the PATH; load an MPI in worker_init of the node pool, or name a program"
        f" in {PROGRAM_VARIABLE}"
    )


def outside_of_steps(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables without those of a step that this process may be a rank of (the one which started the manager)."""
    return {name: value for name, value in environment.items() if not name.startswith(_OF_A_STEP)}
