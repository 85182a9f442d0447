"""Simple commands: text of which bash would only make the arguments of a program; here they become that without it.

To start a shell takes longer than many a short command, and most commands are a program and its arguments.
GNU make (https://www.gnu.org/software/make/manual/html_node/Execution.html) and Perl's `system`
(https://perldoc.perl.org/functions/system) leave the shell out in the same way. Whatever could make a difference is
left to bash: `simple_command` then returns None.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from typing import NamedTuple

from hpcpool.errors import is_from_handler

#: Blanks, characters that mean themselves wherever they stand, and what is in single quotes: as fields are filled in.
_PLAIN = re.compile(r"(?:[\w@%+:,./=\- \t]|'[^']*')+", re.ASCII)
_WORD = re.compile(r"(?:[\w@%+:,./=\-]|'[^']*')+", re.ASCII)
#: Names of programs that bash takes for nothing else: `a=b` sets a variable.
_NAME = re.compile(r"[\w@+,./\-]+", re.ASCII)

#: What bash does itself or reads as grammar (its manual, "Shell Builtin Commands" and "Reserved Words").
_OF_BASH = frozenset(
    """. alias bg bind break builtin caller case cd command compgen complete compopt continue coproc declare
    dirs disown do done echo elif else enable esac eval exec exit export false fc fg fi for function getopts
    hash help history if in jobs kill let local logout mapfile popd printf pushd pwd read readarray readonly
    return select set shift shopt source suspend test then time times trap true type typeset ulimit umask
    unalias unset until wait while""".split()
)
#: Of these the system has programs that do the same, when no argument is an option or has a backslash.
_OF_BOTH = frozenset({"echo", "false", "true"})
_SYSTEM_PATH = "/usr/bin:/bin"

#: Variables by which a user changes how bash starts or finds programs.
_CHANGES_BASH = ("BASH_ENV", "BASHOPTS", "EXECIGNORE", "SHELLOPTS")
#: A function: of bash since 4.3, as some systems mended 4.2, and on macOS. Before, it was a plain variable.
_FUNCTIONS = ("BASH_FUNC_{}%%", "BASH_FUNC_{}()", "__BASH_FUNC<{}>()")
_OLD_FUNCTION = "() {"
#: From this SHLVL on bash begins anew.
_TOO_HIGH = 999


class SimpleCommand(NamedTuple):
    """A program and what it is started with."""

    path: str
    argv: tuple[str, ...]
    #: None: the environment of this process.
    environment: Mapping[str, str] | None


def simple_command(
    text: str, directory: str | None, environment: Mapping[str, str] | None = None
) -> SimpleCommand | None:
    """Return what bash would start for a text; None if bash has to see it.

    Args:
        text: for `bash -c`.
        directory: absolute, where it is to run; None: that of this process.
        environment: what it is to have; None: that of this process.

    Returns:
        What does the same, but for warnings of bash's own start (of a missing locale, say) and variables that bash sets
        for itself: `_`, and SHLVL and OLDPWD where it finds none that are right.
    """
    argv = arguments_of(text)
    variables = os.environ if environment is None else environment
    if argv is None or is_changed(argv[0], variables):
        return None
    try:
        path = _found(argv[0], _SYSTEM_PATH if argv[0] in _OF_BOTH else variables.get("PATH", ""))
        pwd = _pwd(variables.get("PWD", ""), directory or os.curdir)
    except OSError as error:
        if is_from_handler(error):
            raise
        return None
    if path is None:
        return None
    return SimpleCommand(path, argv, environment if pwd is None else {**variables, "PWD": pwd})


def arguments_of(text: str) -> tuple[str, ...] | None:
    """Return the words of a text in which nothing is for bash to do; None if there is anything.

    >>> arguments_of("sort -k 2 'my file'")
    ('sort', '-k', '2', 'my file')
    >>> arguments_of("sort *.txt | head")
    """
    # More lines, even empty ones: then bash stays, waits for the program, and has its say about how that has ended.
    text = text.removesuffix("\n").lstrip(" \t\n").rstrip(" \t")
    if not _PLAIN.fullmatch(text):
        return None
    program, *arguments = _WORD.findall(text)
    if not _NAME.fullmatch(program):
        return None
    argv = (program, *(word.replace("'", "") for word in arguments))
    if program not in _OF_BASH:
        return argv
    is_same = program in _OF_BOTH and not any(word.startswith("-") or "\\" in word for word in argv)
    return argv if is_same else None


def is_changed(program: str, variables: Mapping[str, str]) -> bool:
    """Say whether bash would, by its environment, do anything else than start the program of this name."""
    functions = (function.format(program) for function in _FUNCTIONS)
    return (
        any(name in variables for name in (*_CHANGES_BASH, *functions))
        or variables.get(program, "").startswith(_OLD_FUNCTION)
        or _reads_startup_file(variables)
    )


def _reads_startup_file(variables: Mapping[str, str]) -> bool:
    """Say whether bash takes itself for the first shell of an ssh connection: there many builds read `~/.bashrc`."""
    if not ("SSH_CLIENT" in variables or "SSH2_CLIENT" in variables):
        return False
    level = variables.get("SHLVL", "")
    return not (level.isascii() and level.isdecimal() and 1 <= int(level) < _TOO_HIGH)


def _found(program: str, search_path: str) -> str | None:
    """Return the first program of a name, as bash looks for it; None if there is none, or a relative place for it."""
    if "/" in program:
        return program
    for directory in search_path.split(os.pathsep):
        if not directory.startswith("/"):
            return None
        path = os.path.join(directory, program)
        if os.access(path, os.X_OK) and not stat.S_ISDIR(os.stat(path).st_mode):
            return path
    return None


def _pwd(told: str, directory: str) -> str | None:
    """Return what bash would set PWD to; None if it would leave what it is told."""
    try:
        if told.startswith("/") and os.path.samefile(told, directory):
            return None
    except OSError as error:
        if is_from_handler(error):
            raise
    return os.path.realpath(directory, strict=True)
