"""The rules that options follow, and the error of one that does not; it knows no option by name.

A value of options is a frozen dataclass whose fields carry a `Rule` in their metadata: `settle` applies them.
"""

from __future__ import annotations

import functools
import math
import numbers
import operator
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeAlias, TypeVar

import msgspec

from hpcpool.config.frozen_mapping import FrozenMapping
from hpcpool.errors import ConfigError
from hpcpool.providers import walltime

T = TypeVar("T")

#: Where an option is: ("node_pools", 0, "max_blocks").
Path: TypeAlias = tuple[str | int, ...]

#: No count is larger: far above any machine, and low enough that a slip (a seed, a size in bytes) is noticed.
_MOST = 1_000_000


class OptionError(ConfigError):
    """One option does not fit.

    Attributes: `path` (its keys and indices, from the outside in), `problem` (the message without its place),
    `related` (other paths whose values have a part in the problem).
    """

    def __init__(
        self, message: str = "", *, path: Path = (), problem: str = "", related: tuple[Path, ...] = ()
    ) -> None:
        super().__init__(message)
        self.path = path
        self.problem = problem
        self.related = related


class Rule(msgspec.Struct, frozen=True):
    """What an option can be."""

    #: The valid values in words.
    valid: str
    #: Returns the value to keep; TypeError, ValueError or OverflowError: it does not fit.
    settle: Callable[[Any], object]


def option_of(rule: Rule) -> dict[str, Rule]:
    """The metadata of a field that follows this rule."""
    return {"rule": rule}


def whole(least: int) -> Rule:
    def settle(value: Any) -> int:
        number = operator.index(value)
        if isinstance(value, bool) or not least <= number <= _MOST:
            raise ValueError
        return number

    return Rule(f"a whole number from {least} to {_MOST}", settle)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    seconds = float(value)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError
    return seconds


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    share = float(value)
    if not 0 <= share <= 1:
        raise ValueError
    return share


def _labels(value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple | list):
        raise TypeError
    return tuple(dict.fromkeys(map(_name, value)))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _name(value: Any) -> str:
    # It becomes part of file names, job names and log lines.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError
    return str(value)


def _folder(value: Any) -> str:
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError
    path.encode()  # a name that is not text cannot travel as JSON: UnicodeEncodeError, a ValueError
    # Absolute from here on: the interchange has another current folder.
    return os.path.abspath(os.path.expanduser(path))


#: A name, an IPv4 address, or an IPv6 address in brackets.
_ADDRESS = re.compile(r"[\w.-]+|\[[\da-fA-F:.]+\]")


def _addresses(value: Any) -> tuple[str, ...]:
    addresses = (value,) if isinstance(value, str) else tuple(value)
    if not addresses or not all(isinstance(text, str) and _ADDRESS.fullmatch(text) for text in addresses):
        raise ValueError
    return addresses


def _ports(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        start, _, end = value.partition("-")
        first, last = int(start), int(end or start)
    elif isinstance(value, int):
        first = last = value
    else:
        first, last = map(operator.index, value)
    if isinstance(value, bool) or not 0 <= first <= last <= 65535 or (last and not first):
        raise ValueError
    return first, last


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise TypeError
    value.encode()  # as for a folder
    return value


def _program(value: Any) -> str:
    # Not made absolute: it is one of another machine, and may be a name that is looked up there.
    name = _text(os.fspath(value))
    if not name or name.startswith("-"):
        raise ValueError
    return name


def _variables(value: Any) -> FrozenMapping[str]:
    if not isinstance(value, Mapping):
        raise TypeError
    for name in value:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError
    return FrozenMapping({str(name): _text(text) for name, text in value.items()})


_UNITS: dict[str, int] = {"b": 1} | {
    f"{prefix}{mark}b": base**power
    for power, prefix in enumerate("kmgtp", start=1)
    for mark, base in (("", 1000), ("i", 1024))
}


def bytes_of(value: Any) -> int:
    """Return a number of bytes, given as such or as text with a unit: "4GB" (10**9 each), "512MiB" (2**20 each).

    Raises `TypeError` or `ValueError` for what is neither.
    """
    if isinstance(value, str):
        parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)
        unit = _UNITS.get(parts[2].lower()) if parts is not None else None
        if parts is None or unit is None:
            raise ValueError
        count = round(float(parts[1]) * int(unit))
    elif isinstance(value, bool):
        raise TypeError
    else:
        count = operator.index(value)
    if not 0 < count < 2**60:
        raise ValueError
    return count


def _accelerators(value: Any) -> int | tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError
    if isinstance(value, Iterable):
        groups = tuple(value)
        # They become part of CUDA_VISIBLE_DEVICES: numbers, or the ids of NVIDIA and of its partitions.
        if not groups or not all(re.fullmatch(r"[\w./:-]+(,[\w./:-]+)*", group) for group in groups):
            raise ValueError
        return groups
    return operator.index(whole(0).settle(value))  # type: ignore[arg-type]


def choice(*words: str) -> Rule:
    def settle(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return Rule(" or ".join(map(repr, words)), settle)


def or_none(rule: Rule) -> Rule:
    return Rule(f"{rule.valid}, or None", lambda value: None if value is None else rule.settle(value))


SECONDS = Rule("a number of seconds above 0", _seconds)
SHARE = Rule("a number from 0 to 1", _share)
WALLTIME = Rule(walltime.VALID, walltime.seconds_of)
LABELS = Rule("names, each up to 64 letters, digits, '_', '-' and '.', the first a letter or digit", _labels)
FLAG = Rule("true or false", _flag)
NAME = Rule("up to 64 letters, digits, '_', '-' and '.', the first a letter or digit", _name)
FOLDER = Rule("the path of a folder", _folder)
ADDRESSES = Rule("host names or IP addresses (IPv6 in brackets)", _addresses)
PORTS = Rule("a port, or a range such as '50000-50100'; 0: any", _ports)
BYTES = Rule("bytes as a number, or text such as '4GB' (10**9 each) or '512MiB' (2**20 each)", bytes_of)
ACCELERATORS = Rule("how many each node has, or a tuple of their ids; those of '0,1' stay together", _accelerators)
SHELL_LINES = Rule("text, lines for the shell", _text)
PROGRAM = Rule("the name or path of a program", _program)
VARIABLES = Rule('environment variables with their texts, such as {"OMP_NUM_THREADS": "4"}', _variables)


def settle(owner: Any) -> None:
    """Check each option of a value by its rule, and put what the rule makes of it in its place."""
    for option in fields(owner):
        rule: Rule = option.metadata["rule"]
        value = getattr(owner, option.name)
        try:
            kept = rule.settle(value)
        except (TypeError, ValueError, OverflowError):
            raise misfit((option.name,), f"is {shown(value)}; valid: {rule.valid}", owner=owner) from None
        object.__setattr__(owner, option.name, kept)


def with_hints(cls: type[T]) -> type[T]:
    """Have the constructor of a dataclass name the nearest option when it is given one that does not exist."""
    construct = cls.__init__
    valid = [option.name for option in fields(cls) if option.init]  # type: ignore[arg-type]

    @functools.wraps(construct)
    def construct_with_hints(self: Any, *args: Any, **options: Any) -> None:
        for name in options:
            if name not in valid:
                hint = did_you_mean(name, valid)
                raise TypeError(f"{cls.__name__}() has no option {name!r}{hint} (valid: {', '.join(valid)})")
        construct(self, *args, **options)

    cls.__init__ = construct_with_hints  # type: ignore[method-assign]
    return cls


def did_you_mean(name: object, valid: Sequence[str]) -> str:
    """What to add to a message about a name that does not exist."""
    import difflib  # only a mistake needs it

    given = str(name).lower().replace("-", "_")
    # A name that was only begun is nearer than one that is as long.
    begun = [option for option in valid if len(given) > 3 and option.startswith(given)]
    near = begun or difflib.get_close_matches(given, valid, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def refuse(owner: Any, name: str, problem: str, *related: str) -> NoReturn:
    """Raise because an option does not go with others."""
    problem = f"is {getattr(owner, name)!r}; it {problem}"
    raise misfit((name,), problem, owner=owner, related=tuple((other,) for other in related))


def misfit(
    path: Path, problem: str, *, owner: object = None, place: str = "", related: tuple[Path, ...] = ()
) -> OptionError:
    """The error for one option. `owner`: the value it belongs to, where it was given in Python; `place`: its file."""
    where = dotted(path) if owner is None else f"{type(owner).__name__}.{dotted(path)}"
    return OptionError(f"{place}{where} {problem}", path=path, problem=problem, related=related)


def within(prefix: Path, error: OptionError) -> OptionError:
    """The same error, seen from further out."""
    related = tuple(prefix + path for path in error.related)
    return misfit(prefix + error.path, error.problem, related=related)


def dotted(path: Path) -> str:
    """A path as a user would write it: node_pools[0].max_blocks."""
    return "".join(map(_step, path)).removeprefix(".") or "the configuration"


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if re.fullmatch(r"[\w-]+", step) else f".{step!r}"


def shown(value: object) -> str:
    """A value and its type, short, in words that also fit TOML."""
    kind = {dict: "a table", list: "an array", type(None): ""}.get(type(value), type(value).__name__)
    return f"{reprlib.repr(value)} ({kind})" if kind else "None"


def call_text(value: Any, positional: Iterable[str], default: Any) -> str:
    """The call that makes `value`: its first field is positional, the others are left out where they are as usual."""
    changed = [
        f"{option.name}={getattr(value, option.name)!r}"
        for option in fields(value)[1:]
        if getattr(value, option.name) != getattr(default, option.name)
    ]
    return f"{type(value).__name__}({', '.join([*positional, *changed])})"
