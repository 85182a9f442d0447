"""What a worker does for an app: find the function, call it, run the command that it returns. It knows no executor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

from hpcpool.bash import BashCommand, BashResult, run_bash

T = TypeVar("T")

#: Parameters of a bash app's function that say how its command is run. (`inputs` is none of them: as in Parsl it takes
#: any values, and is there to be waited for.)
BASH_SETTINGS = ("stdout", "stderr", "cwd", "env", "timeout", "check", "outputs")


def run_function(function: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any]) -> T:
    """Run a Python app's function."""
    return function(*args, **kwargs)


def run_command(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> BashResult:
    """Call a bash app's function and run the command line, or the list of arguments, that it returns."""
    command = function(*args, **kwargs)
    settings = bash_settings(function, args, kwargs)
    if isinstance(command, str):
        return run_bash(BashCommand.verbatim(command, **settings))
    if isinstance(command, (list, tuple)):
        return run_bash(BashCommand.of(command, **settings))
    name = getattr(function, "__qualname__", function)
    raise TypeError(f"the bash app {name} must return its command, as text for bash or as a list, not {command!r}")


def bash_settings(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among the arguments of a call, whether they were given or are defaults."""
    signature = inspect.signature(function)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    values = bound.arguments
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            values.update(values.pop(parameter.name))
    return {name: values[name] for name in BASH_SETTINGS if name in values}


def function_of(module: str, qualname: str) -> Callable[..., Any]:
    """Return the function of an app that this process can import."""
    app: Any = import_module(module)
    for name in qualname.split("."):
        app = getattr(app, name)
    function: Callable[..., Any] = app.__wrapped__
    return function
