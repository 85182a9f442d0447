"""What a node is called by who starts programs on it: not always what it calls itself."""

from __future__ import annotations

from collections.abc import Mapping

#: Slurm's name for a node. srun takes no other, nor does an mpirun that uses srun. The administrator chooses it, and it
#: may lack the domain that the host's own name has (https://slurm.schedmd.com/slurm.conf.html#OPT_NodeName).
_OF_SLURM = "SLURMD_NODENAME"


def node_name(environment: Mapping[str, str], hostname: str) -> str:
    """Return the name by which MPI programs are started on this node.

    Args:
        environment: of the manager.
        hostname: what the host calls itself.
    """
    return environment.get(_OF_SLURM) or hostname
