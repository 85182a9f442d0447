"""MPI inside a call: run a function, or any program, as the ranks of one MPI step on the call's nodes.

A call that was submitted with `.options(nodes=..., ranks=...)` has whole nodes to itself. In it, `run` starts a Python
function on all ranks (which needs mpi4py there), and `prefix` is what stands in front of any other MPI program; a bash
call has the same in `$HPCPOOL_MPI_PREFIX`.

    def simulate(steps):
        from mpi4py import MPI
        return MPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.rank * steps)

    ex.options(nodes=2, ranks=8).submit(hpcpool.mpi.run, simulate, 100).result()
    ex.options(nodes=2, ranks=8).bash("$HPCPOOL_MPI_PREFIX ./simulate --steps {n}", n=100)
"""

from __future__ import annotations

from hpcpool.mpi.prefix import launch_prefix
from hpcpool.mpi.step import prefix, run, run_on_all

__all__ = ["launch_prefix", "prefix", "run", "run_on_all"]
