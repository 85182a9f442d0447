"""A configuration from a TOML file, with errors that name its lines."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any

from hpcpool.config.options import OptionError, Path, misfit
from hpcpool.config.plain import config_from
from hpcpool.config.values import Config
from hpcpool.errors import ConfigError


def read_config(path: str | os.PathLike[str], origin: str = "") -> Config:
    """Read a TOML file; `origin` tells who named it. Raises as `Config.from_toml` does."""
    named = f"{os.fspath(path) or repr(path)}{origin}"
    text = _read(path, named)
    try:
        data = tomllib.loads(text + "\n")  # so that an error in the last line has a line, not the "end of document"
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{named}: not valid TOML: {error}") from error
    try:
        return config_from(data)
    except OptionError as error:
        line = _line_of_error(text, error)
        place = f"{named}: " if line is None else f"{named}, line {line}: "
        raise misfit(error.path, error.problem, place=place, related=error.related) from error.__cause__


def _read(path: str | os.PathLike[str], named: str) -> str:
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        hint = " (a number of workers is given as an int)" if os.fspath(path).isdecimal() else ""
        raise ConfigError(f"{named}: cannot be read: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{named}: not valid TOML: not UTF-8 (byte {error.start})") from error
    except ValueError as error:  # a null character in the path
        raise ConfigError(f"{named!r} is not a path: {error}") from error


def _line_of_error(text: str, error: OptionError) -> int | None:
    """The line to look at: of the option; of others that take part, where it was not written; or of its table."""
    parents = [error.path[:length] for length in range(len(error.path) - 1, 0, -1)]
    for path in [error.path, *error.related, *parents]:
        if line := _line_of(text, path):
            return line
    return None


def _line_of(text: str, path: Path) -> int | None:
    """The line, from 1, on which the option at `path` is written; None where it is not.

    The TOML parser keeps no lines, so ever longer beginnings of the text are parsed: the option is in the statement
    with which it first appears. That is exact in whatever way it is written (tables, dotted or quoted keys, inline
    tables), and slow only for long files with an error.
    """
    lines = text.split("\n")
    statement = 0  # the first line after the last beginning that was whole
    for end in range(1, len(lines) + 1):
        try:
            data = tomllib.loads("\n".join(lines[:end]) + "\n")
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a statement
        if _has(data, path):
            return _line_within(lines[statement:end], path[-1]) + statement + 1
        statement = end
    return None


def _line_within(lines: list[str], key: str | int) -> int:
    """Which of the lines of one statement names the key."""
    if isinstance(key, str):
        for index, line in enumerate(lines):
            if re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", line):
                return index
    return 0


def _has(data: Any, path: Path) -> bool:
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return False
    return True
