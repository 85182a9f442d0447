"""A configuration from plain data, as TOML and JSON hold it (tables, arrays, text, numbers), and back; no files."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from hpcpool.config.options import OptionError, Path, did_you_mean, misfit, shown, within
from hpcpool.config.values import Config, NodePool
from hpcpool.errors import ConfigError
from hpcpool.providers import Provider, provider_class

if TYPE_CHECKING:
    from hpcpool.containers import Container
    from hpcpool.launchers import Launcher

_T = TypeVar("_T")

_OF_NODES = "the number of workers is workers_per_node in [[node_pools]]"
_OF_CALLS = "it is an option of single calls: HPCPoolExecutor(...).options({0}=...)"
#: Names that are options, but not of a configuration.
_ELSEWHERE = dict.fromkeys(("max_workers", "workers"), _OF_NODES) | {
    name: _OF_CALLS.format(name)
    for name in (
        "retries",
        "retry_on",
        "timeout",
        "priority",
        "cores",
        "gpus",
        "memory",
        "nodes",
        "ranks",
        "time_request",
        "keep",
    )
}


def config_from(data: object) -> Config:
    """Build a configuration, in the shape of the TOML file.

    Raises:
        OptionError: an option does not fit.
    """
    options = _table(data, ())
    _check_keys(options, Config, (), others=NodePool)
    if "node_pools" not in options:
        return _made(Config, (), options, ())
    pools = options.pop("node_pools")
    if not isinstance(pools, list | tuple) or not pools:
        raise misfit(("node_pools",), f"is {shown(pools)}; valid: at least one table, written [[node_pools]]")
    node_pools = [_node_pool(pool, ("node_pools", index)) for index, pool in enumerate(pools)]
    return _made(Config, node_pools, options, ())


def _node_pool(data: object, path: Path) -> NodePool:
    options = _table(data, path)
    _check_keys(options, NodePool, path, others=Config)
    for name, family in _FAMILIES.items():
        if options.get(name) is not None:
            options[name] = _member_from(options[name], family, (*path, name))
    if options.get("container") is not None:
        options["container"] = _container_from(options["container"], (*path, "container"))
    return _made(NodePool, (), options, path)


class _Family(NamedTuple):
    """Values of several classes, which are told apart by their kind."""

    #: What one of them is called, and a kind for messages.
    noun: str
    example: str
    class_of: Callable[[str], type[Any]]


def _launcher_class(kind: str) -> type[Launcher]:
    from hpcpool.launchers import launcher_class  # a pool on this machine has none

    return launcher_class(kind)


_FAMILIES = {
    "provider": _Family("provider", "local", provider_class),
    "launcher": _Family("launcher", "srun", _launcher_class),
}


def _member_from(data: object, family: _Family, path: Path) -> object:
    """Build a member from its kind alone, or from a table of its kind and options."""
    if isinstance(data, str):
        return _member_of(family, data, {}, path, at=path)
    options = _table(data, path, f"a kind such as {family.example!r}, or a table with kind and options")
    if "kind" not in options:
        raise misfit(path, f"has no kind; write for example kind = {family.example!r}")
    return _member_of(family, options.pop("kind"), options, path, at=(*path, "kind"))


def _member_of(family: _Family, kind: object, options: dict[str, object], path: Path, at: Path) -> object:
    """Build a member; `at` is where its kind is written."""
    if not isinstance(kind, str):
        raise misfit(at, f"is {shown(kind)}; valid: the name of a {family.noun}, such as {family.example!r}")
    try:
        member_type = family.class_of(kind)
    except ConfigError as error:
        raise misfit(at, f"cannot be used: {error}") from error.__cause__
    return _value_from(member_type, options, path, also=["kind"])


def _container_from(data: object, path: Path) -> Container:
    """Build a container from its image alone, or from a table of its options."""
    from hpcpool.containers import Container  # as above

    if isinstance(data, str):
        data = {"image": data}
    return _value_from(Container, _table(data, path, "an image, or a table with image and other options"), path)


def _value_from(value_type: type[_T], options: dict[str, object], path: Path, also: Collection[str] = ()) -> _T:
    """Build a value of options that are typed by its fields and checked by itself."""
    _check_keys(options, value_type, path, also=also)
    hints = typing.get_type_hints(value_type, include_extras=True)
    values = {name: _converted(value, hints[name], (*path, name)) for name, value in options.items()}
    if missing := [name for name in _required(value_type) if name not in values]:
        raise misfit(path, f"needs {', '.join(missing)} as well")
    try:
        return value_type(**values)
    except (TypeError, ValueError) as error:  # its own checks
        raise misfit(path, f"is refused: {error}") from error


def _made(value_type: Callable[..., _T], positional: Iterable[object], options: dict[str, Any], path: Path) -> _T:
    """Make the value; what it refuses, it refuses at this path."""
    try:
        return value_type(*positional, **options)
    except OptionError as error:
        raise within(path, error) from error.__cause__


def _table(data: object, path: Path, valid: str = "a table of options") -> dict[str, Any]:
    """A copy of a table, to take keys from."""
    if not isinstance(data, Mapping):
        raise misfit(path, f"is {shown(data)}; valid: {valid}")
    return dict(data)


def _check_keys(
    options: Mapping[str, object],
    owner: type[Any],
    path: Path,
    *,
    others: type[Any] | None = None,
    also: Collection[str] = (),
) -> None:
    """Refuse the first key that is not an option of `owner`; `others` has the options of the other kind of table."""
    valid = [*also, *(option.name for option in fields(owner) if option.init)]
    for key in options:
        if key not in valid:
            raise misfit((*path, key), f"is not an option{_advice(key, valid, others)} (valid: {', '.join(valid)})")


def _advice(key: object, valid: list[str], others: type[Any] | None) -> str:
    """What the user may have meant."""
    elsewhere = "[[node_pools]]" if others is NodePool else "the top level, before any [[node_pools]]"
    if others is not None and key in {option.name for option in fields(others)}:
        return f" here; it belongs to {elsewhere}"
    if others is not None and isinstance(key, str) and key in _ELSEWHERE:
        return f"; {_ELSEWHERE[key]}"
    return did_you_mean(key, valid)


def _converted(value: object, hint: Any, path: Path) -> object:
    """The value as the type that a provider's field declares: exactly that, no text is taken for a number."""
    _check_tables(value, hint, path)
    try:
        return msgspec.convert(value, hint, strict=True)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):  # a value's own checks
            raise misfit(path, f"is refused: {error.__cause__}") from error
        valid = hint.__name__ if type(hint) is type else str(hint)
        raise misfit(path, f"is {shown(value)}; valid: {valid}") from None


def _check_tables(value: object, hint: Any, path: Path) -> None:
    """Refuse keys that are no options in the tables of a value; msgspec would pass them by."""
    owners = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
    if isinstance(value, Mapping) and owners:
        _check_keys(value, typing.cast("type[Any]", owners[0]), path)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            for kind in typing.get_args(hint):
                _check_tables(item, kind, (*path, index))


def _required(owner: type[Any]) -> Iterator[str]:
    for option in fields(owner):
        has_default = option.default is not dataclasses.MISSING or option.default_factory is not dataclasses.MISSING
        if option.init and not has_default:
            yield option.name


def plain_config(config: Config) -> dict[str, object]:
    """All options as plain data, from which `config_from` makes an equal value; raises as `Config.to_dict` does."""
    plain = {option.name: _plain_option(getattr(config, option.name)) for option in fields(config)}
    return plain | {"node_pools": [_plain_pool(pool) for pool in config.node_pools]}


def _plain_option(value: object) -> object:
    """A value as TOML and JSON have it: they know only one kind of sequence."""
    return list(value) if isinstance(value, tuple) else value


def _plain_pool(pool: NodePool) -> dict[str, object]:
    plain = {option.name: _plain_option(getattr(pool, option.name)) for option in fields(pool)}
    members = {name: _plain_member(getattr(pool, name), family) for name, family in _FAMILIES.items()}
    container = None if pool.container is None else _plain_value(pool.container)
    return plain | members | {"container": container, "env": dict(pool.env)}


def _plain_member(member: Provider | Launcher | None, family: _Family) -> dict[str, object] | None:
    if member is None:
        return None
    if family.class_of(member.kind) is not type(member):
        raise ConfigError(f"{member!r} cannot be rebuilt: its kind {member.kind!r} is that of another class")
    return {"kind": member.kind, **_plain_value(member)}


def _plain_value(value: object) -> dict[str, object]:
    try:
        plain: dict[str, object] = msgspec.to_builtins(value)
    except TypeError as error:
        raise ConfigError(f"{value!r} has an option that is not a plain value: {error}") from error
    return plain
