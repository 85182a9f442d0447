"""Machines of the National Energy Research Scientific Computing Center."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from hpcpool.config import Config, NodePool
from hpcpool.errors import ConfigError
from hpcpool.providers import SlurmProvider

Lines: TypeAlias = str | tuple[str, ...]

#: Hardware threads of a node, by constraint.
_PERLMUTTER_CORES = {"cpu": 256, "gpu": 128}
_CORI_CORES = {"haswell": 64, "knl": 272}


def perlmutter(
    *,
    account: str,
    walltime: str | float = "00:30:00",
    constraint: Literal["cpu", "gpu"] = "cpu",
    qos: str = "regular",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Perlmutter, for a program on one of its login nodes.

    Source: https://docs.nersc.gov/systems/perlmutter/running-jobs/

    Args:
        account: the project that is charged.
        walltime: how long a block may last.
        constraint: CPU nodes (128 cores), or GPU nodes (64 cores, 4 A100, all of which are asked for).
        qos: "regular", "debug", "premium", "preempt" ...
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    provider = SlurmProvider(
        account=account,
        qos=qos,
        constraint=constraint,
        cores_per_node=_cores(_PERLMUTTER_CORES, constraint),
        gpus_per_node=4 if constraint == "gpu" else None,
        walltime=walltime,
        scheduler_options=scheduler_options,
    )
    return Config(NodePool(provider, **{"name": "perlmutter", **node_pool}))


def cori(
    *,
    account: str,
    walltime: str | float = "00:30:00",
    constraint: Literal["haswell", "knl"] = "haswell",
    qos: str = "regular",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Cori. **Cori retired on 31 May 2023**: use `perlmutter`.

    Source: https://docs.nersc.gov/systems/cori/

    Args:
        account: the project that is charged.
        walltime: how long a block may last.
        constraint: Haswell nodes (32 cores), or Knights Landing nodes (68 cores).
        qos: "regular", "debug" ...
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    provider = SlurmProvider(
        account=account,
        qos=qos,
        constraint=constraint,
        cores_per_node=_cores(_CORI_CORES, constraint),
        walltime=walltime,
        scheduler_options=scheduler_options,
    )
    return Config(NodePool(provider, **{"name": "cori", **node_pool}))


def _cores(by_constraint: dict[str, int], constraint: str) -> int:
    if constraint not in by_constraint:
        raise ConfigError(f"constraint is {constraint!r}; valid: {', '.join(map(repr, by_constraint))}")
    return by_constraint[constraint]
