"""Decorators that make apps: functions whose calls are submitted to an executor and return futures.

An app belongs to the executor that it was given, else to that of the innermost `with` block around the call, else to
one that all such apps of the process share: `HPCPoolExecutor()`, made at the first call. It ends with the program,
when it has finished its calls.

Futures anywhere among the arguments are dependencies. A call travels with its function: by name where that can be
imported, by value where it cannot (as in `__main__`).
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, Generic, TypeVar, overload

from typing_extensions import TypedDict, Unpack

from hpcpool import current
from hpcpool.app_calls import function_of, run_command, run_function
from hpcpool.bash import BashResult
from hpcpool.current import AnyExecutor
from hpcpool.default_executor import default_executor
from hpcpool.executor import HPCPoolExecutor
from hpcpool.naming import name_of
from hpcpool.options import RetryOn, changed
from hpcpool.processes.task_future import TaskFuture
from hpcpool.processes.ticket import CallOptions
from hpcpool.view import ExecutorView
from hpcpool.wire import by_value

T = TypeVar("T")


class Options(TypedDict, total=False):
    """The options of an app's calls: those of `HPCPoolExecutor.options`."""

    retries: int
    retry_on: RetryOn
    timeout: float | None
    priority: int
    crash_limit: int
    name: str
    cores: int | None
    gpus: int | None
    memory: str | int | None
    nodes: int | None
    ranks: int | None
    pool: str | None
    time_request: float | None
    keep: bool


class App(Generic[T]):
    """A decorated function: calling it submits a call and returns the call's `TaskFuture`.

    It has the name, the docstring and the signature of the function, and works as a method. The function itself is
    its attribute `__wrapped__`.
    """

    #: Set by `functools.update_wrapper`.
    __wrapped__: Callable[..., Any]
    __qualname__: str

    def __init__(self, function: Callable[..., Any], executor: AnyExecutor | None, options: Options) -> None:
        functools.update_wrapper(self, function)
        self._executor = executor
        self._options = options

    def __call__(self, /, *args: Any, **kwargs: Any) -> TaskFuture[T]:
        executor = self._executor
        if executor is None:
            executor = current.innermost()
        return self._submit(default_executor() if executor is None else executor, args, kwargs)

    def _submit(self, executor: AnyExecutor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskFuture[T]:
        raise NotImplementedError

    def _with_options(self, executor: AnyExecutor) -> AnyExecutor:
        return executor.options(**self._options) if self._options else executor

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> Any:
        """Pickle by name, or by value without the executor, which cannot leave its process."""
        if _is_found_by_name(self):
            return self.__qualname__
        return (copyreg.__newobj__, (type(self),), {**self.__dict__, "_executor": None})  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"<app {name_of(self.__wrapped__)}>"


class _WorkerApp(App[T]):
    """An app whose function runs in a worker."""

    def __init__(
        self,
        run: Callable[..., T],
        function: Callable[..., Any],
        executor: AnyExecutor | None,
        options: Options,
    ) -> None:
        super().__init__(function, executor, options)
        self._run = run
        self._call_by_value = _call_by_value(run, function)
        self._call_by_name: Callable[..., T] | None = None

    def _submit(self, executor: AnyExecutor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskFuture[T]:
        return self._with_options(executor).submit(self._call(), *args, **kwargs)

    def _call(self) -> Callable[..., T]:
        """What to submit; always the same objects, because the executor knows by those what it has sent before."""
        if not _is_found_by_name(self):
            return self._call_by_value
        if self._call_by_name is None:
            self._call_by_name = _call_by_name(self._run, self.__module__, self.__qualname__)
        return self._call_by_name


class _JoinApp(App[Any]):
    """An app whose function runs here and returns futures."""

    def _submit(self, executor: AnyExecutor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskFuture[Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # In the thread of the join: the apps that the function calls belong to the executor of this call.
            with current.inside(executor):
                return self.__wrapped__(*args, **kwargs)

        call.__qualname__ = name_of(self.__wrapped__)
        return self._with_options(executor).join(call, *args, **kwargs)


def _call_by_value(run: Callable[..., T], function: Callable[..., Any]) -> Callable[..., T]:
    def call(*args: Any, **kwargs: Any) -> T:
        return run(function, args, kwargs)

    call.__qualname__ = name_of(function)
    return call


def _call_by_name(run: Callable[..., T], module: str, qualname: str) -> Callable[..., T]:
    def call(*args: Any, **kwargs: Any) -> T:
        return run(function_of(module, qualname), args, kwargs)

    call.__qualname__ = qualname
    return call


def _is_found_by_name(app: App[Any]) -> bool:
    # With modules registered as "by value", one cannot tell here whether a worker has the app's module.
    return by_value.is_importable(app) and not by_value.has_registered_modules()


@overload
def python_app(function: Callable[..., T], /) -> App[T]: ...
@overload
def python_app(
    *, executor: AnyExecutor | None = None, **options: Unpack[Options]
) -> Callable[[Callable[..., T]], App[T]]: ...
def python_app(
    function: Callable[..., Any] | None = None, /, *, executor: AnyExecutor | None = None, **options: Unpack[Options]
) -> Any:
    """Make a function an app that runs in a worker. Use it bare or with arguments.

    Args:
        executor: whose workers run it: an `HPCPoolExecutor` or a view of one. None: decided at each call (see above).
        **options: `retries`, `retry_on`, `timeout`, `priority`, `crash_limit`, `name`, `cores`, `gpus`, `memory`,
            `nodes`, `ranks`, `pool`, `time_request` and `keep`, as for `HPCPoolExecutor.options`.

    Raises:
        TypeError, ValueError: an argument is none of these, or has an impossible value.

    Example:
        >>> from hpcpool import HPCPoolExecutor
        >>> from hpcpool.apps import python_app
        >>> @python_app
        ... def add(a, b):
        ...     return a + b
        >>> with HPCPoolExecutor(1):
        ...     three = add(1, 2)
        ...     add(three, three).result()
        6
    """
    _check("python_app", function, executor, options)

    def decorate(function: Callable[..., T]) -> App[T]:
        return _WorkerApp(run_function, function, executor, options)

    return decorate if function is None else decorate(function)


@overload
def bash_app(function: Callable[..., Any], /) -> App[BashResult]: ...
@overload
def bash_app(
    *, executor: AnyExecutor | None = None, **options: Unpack[Options]
) -> Callable[[Callable[..., Any]], App[BashResult]]: ...
def bash_app(
    function: Callable[..., Any] | None = None, /, *, executor: AnyExecutor | None = None, **options: Unpack[Options]
) -> Any:
    """Make a function an app that returns a command, which bash runs in a worker. Use it bare or with arguments.

    The function is called in the worker, where futures among its arguments have become their results. The text that it
    returns is run as it stands: nothing is filled in and nothing is quoted (`shlex.quote` does that). If it returns a
    list, that is a program and its arguments, run without a shell.

    Parameters of the function that are named `stdout`, `stderr`, `cwd`, `env`, `timeout`, `check` or `outputs` say how
    the command is run, as those of `HPCPoolExecutor.bash` do; their values are those given in the call, or their
    defaults. A parameter named `inputs` is like any other.

    Args:
        executor, **options: as for `python_app`.

    Returns:
        An app whose calls give a `BashResult`, or fail with `BashError`, `BashTimeout` or `MissingOutputs`.

    Raises:
        TypeError, ValueError: as for `python_app`.

    Example:
        >>> from hpcpool import HPCPoolExecutor
        >>> from hpcpool.apps import bash_app
        >>> @bash_app
        ... def greet(name, env=None):
        ...     return f'echo "Hello {name}, $HOW?"'
        >>> with HPCPoolExecutor(1):
        ...     greet("you", env={"HOW": "how are you"}).result().stdout
        'Hello you, how are you?\\n'
    """
    _check("bash_app", function, executor, options)

    def decorate(function: Callable[..., Any]) -> App[BashResult]:
        return _WorkerApp(run_command, function, executor, options)

    return decorate if function is None else decorate(function)


@overload
def join_app(function: Callable[..., Any], /) -> App[Any]: ...
@overload
def join_app(*, executor: AnyExecutor | None = None, name: str = ...) -> Callable[[Callable[..., Any]], App[Any]]: ...
def join_app(
    function: Callable[..., Any] | None = None, /, *, executor: AnyExecutor | None = None, name: str | None = None
) -> Any:
    """Make a function an app that runs in this process and returns futures, whose results become its result.

    It runs in a thread, when the futures among its arguments have finished, and calls other apps: a graph of calls
    grows while it runs. Those that name no executor use the one of the join app. It should not wait for what it
    returns: a future, or futures inside lists, tuples, sets and dictionaries.

    Args:
        executor: as for `python_app`.
        name: what messages call its calls; None: the function's name.

    Raises:
        TypeError: an argument is none of these.

    Example:
        >>> from hpcpool import HPCPoolExecutor
        >>> from hpcpool.apps import join_app, python_app
        >>> @python_app
        ... def add(a, b):
        ...     return a + b
        >>> @join_app
        ... def fibonacci(n):
        ...     return add(fibonacci(n - 1), fibonacci(n - 2)) if n > 2 else add(1, 0)
        >>> with HPCPoolExecutor(1):
        ...     fibonacci(6).result()
        8
    """
    options: Options = {} if name is None else {"name": name}
    _check("join_app", function, executor, options)

    def decorate(function: Callable[..., Any]) -> App[Any]:
        return _JoinApp(function, executor, options)

    return decorate if function is None else decorate(function)


def _check(decorator: str, function: object, executor: object, options: Options) -> None:
    """Refuse, where the app is made, what would fail at its calls."""
    if function is not None and not callable(function):
        raise TypeError(f"{decorator} is given a function, and the rest by name (executor=...), not {function!r}")
    if executor is not None and not isinstance(executor, (HPCPoolExecutor, ExecutorView)):
        raise TypeError(f"{decorator}(executor=...) is an HPCPoolExecutor, a view of one or None, not {executor!r}")
    if unknown := sorted(options.keys() - Options.__annotations__.keys()):
        known = ", ".join(["executor", *Options.__annotations__])
        raise TypeError(f"{decorator} has no option {', '.join(map(repr, unknown))}; it has {known}")
    changed(CallOptions(), **options)


__all__ = ["App", "bash_app", "join_app", "python_app"]
