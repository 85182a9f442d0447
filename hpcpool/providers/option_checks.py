"""The checks that the options of batch systems have in common. They raise a `ConfigError` that names the option."""

from __future__ import annotations

from typing import Any, NoReturn

from hpcpool.errors import ConfigError
from hpcpool.providers import walltime
from hpcpool.providers.ssh.login import login_of

#: No count is larger: far above any machine, and low enough that a slip (a size in bytes) is noticed.
_MOST = 1_000_000


def refuse(provider: object, name: str, valid: str) -> NoReturn:
    """Raise because of the value of an option."""
    raise ConfigError(f"{type(provider).__name__}.{name} is {getattr(provider, name)!r}; valid: {valid}")


def check_texts(provider: object, *names: str) -> None:
    """Each is None, or text that fits in a line of a job script."""
    for name in names:
        value = getattr(provider, name)
        if value is not None and not is_line(value):
            refuse(provider, name, "text without line breaks, or None")


def check_words(provider: object, *names: str) -> None:
    """Each is None, or text without blanks."""
    for name in names:
        value = getattr(provider, name)
        if value is not None and not is_word(value):
            refuse(provider, name, "text without blanks, or None")


def check_flags(provider: object, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(provider, name), bool):
            refuse(provider, name, "True or False")


def check_counts(provider: object, *names: str) -> None:
    """Each is None, or a whole number from 1."""
    for name in names:
        value = getattr(provider, name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
            refuse(provider, name, f"a whole number from 1 to {_MOST}, or None")


def check_seconds(provider: object, *names: str) -> None:
    for name in names:
        value = getattr(provider, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST:
            refuse(provider, name, f"a number of seconds above 0, up to {_MOST}")


def check_login(provider: object, name: str) -> None:
    """It is None, an `SSHLogin`, or the text of one."""
    value = getattr(provider, name)
    if value is not None:
        login_of(value)


def check_folder(provider: object, name: str) -> None:
    """It is None, or a path that means the same in whatever folder it is used."""
    value = getattr(provider, name)
    if value is not None and not (is_line(value) and value.startswith(("/", "~/"))):
        refuse(provider, name, "an absolute path, one that begins with '~/', or None")


def walltime_of(provider: Any) -> float | None:
    """Return the seconds of the option `walltime`; None: it is not set."""
    if provider.walltime is None:
        return None
    try:
        return walltime.seconds_of(provider.walltime)
    except ConfigError:
        refuse(provider, "walltime", f"{walltime.VALID}, or None")


def settle_lines(provider: object, name: str, prefix: str) -> None:
    """Make the lines of an option, which are text or a sequence of texts, a tuple of lines that begin with `prefix`."""
    value = getattr(provider, name)
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
        refuse(provider, name, "lines of text")
    lines = [line.strip() for text in given for line in text.splitlines() if line.strip()]
    if not all(map(is_line, lines)):
        refuse(provider, name, "lines of text that can be printed")
    settled = tuple(line if line.startswith(prefix) else f"{prefix} {line}" for line in lines)
    object.__setattr__(provider, name, settled)


def settle_words(provider: object, name: str) -> None:
    """Make an option, which is a sequence of texts without blanks, a tuple."""
    value = getattr(provider, name)
    if not isinstance(value, list | tuple) or not all(map(is_word, value)):
        refuse(provider, name, "a sequence of texts without blanks")
    object.__setattr__(provider, name, tuple(value))


def is_word(value: object) -> bool:
    return is_line(value) and len(str(value).split()) == 1 and str(value).strip() == value


def is_line(value: object) -> bool:
    """Whether it is text that can stand in a line of a script: not blank, without line breaks."""
    return isinstance(value, str) and value.strip() != "" and value.isprintable()
