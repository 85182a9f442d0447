"""The batch systems that blocks run on, found by kind: those that come with hpcpool, then those of other packages."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from hpcpool.errors import ConfigError
from hpcpool.providers.base import BlockRequest, Driver, JobState, JobStatus, Provider, SubmitError
from hpcpool.providers.local import LocalProvider

__all__ = [
    "ENTRY_POINTS",
    "BlockRequest",
    "Driver",
    "JobState",
    "JobStatus",
    "LocalProvider",
    "Provider",
    "SubmitError",
    "provider_class",
]

#: The entry-point group in which other packages name their providers, each under its kind.
ENTRY_POINTS = "hpcpool.providers"

_BUILT_IN: Mapping[str, type[Provider]] = {LocalProvider.kind: LocalProvider}


def provider_class(kind: str) -> type[Provider]:
    """The class of providers of this kind.

    Other packages are looked at, and the one that names this kind is imported, only when it is not a built-in one.

    Raises:
        ConfigError: nobody offers this kind, or who does cannot be imported or is not a provider.
    """
    return _BUILT_IN.get(kind) or _from_entry_point(kind)


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
    near = difflib.get_close_matches(kind, known, n=1)
    return f"no provider of kind {kind!r}{f'; did you mean {near[0]!r}?' if near else ''} (known: {', '.join(known)})"
