"""Ready configurations for some machines, as functions with the few parameters that a user must give.

Each takes, besides its own parameters, any option of `NodePool`: `nodes_per_block`, `max_blocks`, `worker_init` ...
They are starting points, written from what the machines' documentation says; the queues and limits of a machine change,
and its documentation has the last word.

    from hpcpool import HPCPoolExecutor
    from hpcpool.sites import perlmutter

    with HPCPoolExecutor(perlmutter(account="m1234", walltime="01:00:00", nodes_per_block=2)) as ex:
        ...
"""

from __future__ import annotations

from hpcpool.sites.alcf import cooley, polaris, theta
from hpcpool.sites.cray import swan
from hpcpool.sites.in2p3 import cc_in2p3
from hpcpool.sites.nersc import cori, perlmutter
from hpcpool.sites.osg import open_science_pool
from hpcpool.sites.own import ad_hoc
from hpcpool.sites.rcc import midway
from hpcpool.sites.sdsc import comet, expanse
from hpcpool.sites.tacc import stampede2, stampede3

__all__ = [
    "ad_hoc",
    "cc_in2p3",
    "comet",
    "cooley",
    "cori",
    "expanse",
    "midway",
    "open_science_pool",
    "perlmutter",
    "polaris",
    "stampede2",
    "stampede3",
    "swan",
    "theta",
]
