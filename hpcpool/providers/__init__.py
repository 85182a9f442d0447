"""The batch systems that blocks run on, found by kind: those that come with hpcpool, then those of other packages.

All but the local one are loaded when they are first used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpcpool.errors import ConfigError
from hpcpool.providers.base import (
    BlockRequest,
    Driver,
    JobState,
    JobStatus,
    Provider,
    RemoteDriver,
    SubmitError,
    Unreachable,
)
from hpcpool.providers.local import LocalProvider

if TYPE_CHECKING:
    from hpcpool.providers.cobalt import CobaltProvider
    from hpcpool.providers.flux import FluxProvider
    from hpcpool.providers.gridengine import GridEngineProvider
    from hpcpool.providers.htcondor import HTCondorProvider
    from hpcpool.providers.lsf import LSFProvider
    from hpcpool.providers.oar import OARProvider
    from hpcpool.providers.pbs import PBSProProvider
    from hpcpool.providers.slurm import SlurmProvider
    from hpcpool.providers.ssh.login import SSHLogin
    from hpcpool.providers.ssh.provider import SSHProvider
    from hpcpool.providers.torque import TorqueProvider

__all__ = [
    "ENTRY_POINTS",
    "BlockRequest",
    "CobaltProvider",
    "Driver",
    "FluxProvider",
    "GridEngineProvider",
    "HTCondorProvider",
    "JobState",
    "JobStatus",
    "LSFProvider",
    "LocalProvider",
    "OARProvider",
    "PBSProProvider",
    "Provider",
    "RemoteDriver",
    "SSHLogin",
    "SSHProvider",
    "SlurmProvider",
    "SubmitError",
    "TorqueProvider",
    "Unreachable",
    "provider_class",
]

#: The entry-point group in which other packages name their providers, each under its kind.
ENTRY_POINTS = "hpcpool.providers"

#: The class of each kind that comes with hpcpool, and the module that it is in.
_BUILT_IN: Mapping[str, tuple[str, str]] = {
    "cobalt": ("CobaltProvider", "hpcpool.providers.cobalt"),
    "flux": ("FluxProvider", "hpcpool.providers.flux"),
    "gridengine": ("GridEngineProvider", "hpcpool.providers.gridengine"),
    "htcondor": ("HTCondorProvider", "hpcpool.providers.htcondor"),
    "local": ("LocalProvider", "hpcpool.providers.local"),
    "lsf": ("LSFProvider", "hpcpool.providers.lsf"),
    "oar": ("OARProvider", "hpcpool.providers.oar"),
    "pbspro": ("PBSProProvider", "hpcpool.providers.pbs"),
    "ssh": ("SSHProvider", "hpcpool.providers.ssh.provider"),
    "slurm": ("SlurmProvider", "hpcpool.providers.slurm"),
    "torque": ("TorqueProvider", "hpcpool.providers.torque"),
}
_HOMES: Mapping[str, str] = {**dict(_BUILT_IN.values()), "SSHLogin": "hpcpool.providers.ssh.login"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def provider_class(kind: str) -> type[Provider]:
    """The class of providers of this kind.

    Other packages are looked at, and the one that names this kind is imported, only when it is not a built-in one.

    Raises:
        ConfigError: nobody offers this kind, or who does cannot be imported or is not a provider.
    """
    if kind not in _BUILT_IN:
        return _from_entry_point(kind)
    name, home = _BUILT_IN[kind]
    return getattr(import_module(home), name)  # type: ignore[no-any-return]  # the tests hold that it is one


def _from_entry_point(kind: str) -> type[Provider]:
    # Imported here because it costs more than the rest of this package, and few programs need it.
    from importlib.metadata import entry_points

    group = entry_points(group=ENTRY_POINTS)
    if kind not in group.names:
        raise ConfigError(_unknown(kind, sorted({*_BUILT_IN, *group.names})))
    point = group[kind]
    try:
        found = point.load()
    except Exception as error:  # another package's code: it may raise anything
        raise ConfigError(f"the provider {kind!r} ({point.value}) cannot be imported: {error!r}") from error
    if not _is_provider_class(found, kind):
        raise ConfigError(f"the provider {kind!r} ({point.value}) is not a dataclass with kind = {kind!r} and open()")
    return found  # type: ignore[no-any-return]  # checked above


def _is_provider_class(found: object, kind: str) -> bool:
    return (
        isinstance(found, type)
        and dataclasses.is_dataclass(found)
        and isinstance(found, Provider)
        and found.kind == kind
    )


def _unknown(kind: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(kind, known, n=1)
    return f"no provider of kind {kind!r}{f'; did you mean {near[0]!r}?' if near else ''} (known: {', '.join(known)})"
