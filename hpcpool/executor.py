"""The executor that users see, and its views with options: the face of a pool. What it does is done by the client."""

from __future__ import annotations

import functools
import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from typing import Any, Literal, Self, SupportsIndex, TypeVar

from typing_extensions import ParamSpec

from hpcpool import current, joining, mapping
from hpcpool.bash import BashCommand, BashResult, run_bash
from hpcpool.config import Config, NodePool
from hpcpool.options import UNSET, RetryOn, _Unset, changed
from hpcpool.processes import lifecycle, outcomes
from hpcpool.processes.client import Client, Hold
from hpcpool.processes.task_future import TaskFuture
from hpcpool.processes.ticket import CallOptions
from hpcpool.providers.base import Provider
from hpcpool.wire.functions import Blob, FunctionCache, function_within, load_function
from hpcpool.wire.messages import Setup
from hpcpool.wire.payload import Payload, pickle_call
from hpcpool.wire.setup import local_setup

P = ParamSpec("P")
T = TypeVar("T")
Path = str | os.PathLike[str]
ConfigSource = Config | NodePool | Provider | Path

_KILL = 9
_TERMINATE = 15


class _Calls(Executor):
    """What the executor and its views share: the ways to submit calls."""

    def _submit(self, options: CallOptions, fn: Callable[..., T], args: Any, kwargs: Any) -> TaskFuture[T]:
        raise NotImplementedError

    def _check_open(self) -> None:
        raise NotImplementedError

    def _noted(self, future: TaskFuture[T]) -> TaskFuture[T]:
        """Return a future that was made through this object."""
        return future

    @property
    def _options(self) -> CallOptions:
        raise NotImplementedError

    @property
    def _pool(self) -> HPCPoolExecutor:
        raise NotImplementedError

    def __enter__(self) -> Self:
        current.enter(self)  # type: ignore[arg-type]  # there are only the two executors below
        return self

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Have `fn(*args, **kwargs)` run in a worker.

        A future (of any executor) anywhere inside the arguments is a dependency: the call starts when it has finished
        and sees its result in its place. Arguments are captured now: what is changed later is not seen by the call.

        Args:
            fn: any callable; functions and classes of `__main__`, lambdas and closures too.
            *args, **kwargs: any objects that can be pickled. No keyword is taken away from `fn`.

        Returns:
            The call's future. Arguments that cannot be pickled fail that future, with the error's own type.

        Raises:
            RuntimeError: the executor was shut down.
            BrokenPool: the pool cannot go on (its initializer failed, its interchange died, …).

        Example:
            >>> with HPCPoolExecutor(2) as pool:
            ...     parts = [pool.submit(pow, n, 2) for n in range(4)]
            ...     pool.submit(sum, parts).result()
            14
        """
        return self._submit(self._options, fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = 1,
        buffersize: int | None = None,
        unordered: bool = False,
        progress: bool = False,
    ) -> Iterator[T]:
        """Call `fn` with the items of the iterables; like `ProcessPoolExecutor.map`, and a little more.

        Args:
            fn: takes as many arguments as there are iterables.
            iterables: the shortest ends the calls. They are read at once if all of them have a length, and through a
                window, in a thread, if not.
            timeout: seconds from now until all results must have been taken; None: no limit.
            chunksize: items for one task; "auto" measures how long items take, and cuts chunks of some milliseconds.
            buffersize: at most this many tasks are submitted ahead of the results that are taken; None: no limit.
            unordered: results as they come, not in the order of the items.
            progress: a progress bar on stderr (needs `tqdm`: the extra `hpcpool[progress]`).

        Returns:
            An iterator over the results. The first call that raised raises here, in its position; then, and when the
            iterator is closed, the rest is cancelled.

        Raises:
            TimeoutError: from the iterator, when `timeout` has passed.
            ValueError, TypeError: an option is none.

        Example:
            >>> with HPCPoolExecutor(2) as pool:
            ...     list(pool.map(pow, range(4), range(4)))
            [1, 1, 4, 27]
        """
        self._check_open()
        return mapping.run_map(
            self.submit,
            fn,
            iterables,
            hold=self._pool._hold,
            workers=self._pool._max_workers,
            timeout_s=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            unordered=unordered,
            progress=progress,
        )

    def options(
        self,
        *,
        retries: int | _Unset = UNSET,
        retry_on: RetryOn | _Unset = UNSET,
        timeout: float | _Unset | None = UNSET,
        priority: int | _Unset = UNSET,
        crash_limit: int | _Unset = UNSET,
        name: str | _Unset = UNSET,
    ) -> ExecutorView:
        """Return a view of this executor whose calls have these options; views can be viewed again.

        Args:
            retries: how often a call that failed is run again. Default 0. Lost nodes do not count.
            retry_on: which failures are retried: exception classes, or a function of the exception. Default
                `Exception` (a timeout is one).
            timeout: seconds that a call may run; then its worker and all that it started are ended and the future
                raises the builtin `TimeoutError`. None, the default: no limit.
            priority: a call of higher priority starts first. Default 0.
            crash_limit: a call fails for good when it has killed this many workers. Default: the configuration's, 1.
            name: what messages and `TaskFuture.info` call the calls. Default: the function's name.

        Example:
            >>> with HPCPoolExecutor(1) as pool:
            ...     pool.options(timeout=30, retries=2).submit(pow, 2, 3).result()
            8
        """
        options = changed(
            self._options,
            retries=retries,
            retry_on=retry_on,
            timeout=timeout,
            priority=priority,
            crash_limit=crash_limit,
            name=name,
        )
        return ExecutorView(self._pool, options)

    def bash(
        self,
        command: str | Sequence[Any],
        /,
        *,
        stdout: Path | tuple[Path, str] | Any = None,
        stderr: Path | tuple[Path, str] | Any = None,
        cwd: Path | Any = None,
        env: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        check: bool = True,
        inputs: Iterable[Any] = (),
        outputs: Iterable[Any] = (),
        **fields: Any,
    ) -> TaskFuture[BashResult]:
        """Have a command run by bash in a worker.

        Args:
            command: a template whose `{fields}` are replaced by shell-quoted values (`{field:raw}`: unquoted; braces
                for bash are doubled), or a list of arguments that is run without a shell.
            stdout, stderr: None: captured, the last 16 MiB of it; a path, or `(path, mode)`: written there.
            cwd: the directory to run in; None: the worker's.
            env: added to the worker's environment; a value of None removes a variable.
            timeout: seconds; then the command's process group gets TERM, and KILL 2 s later.
            check: False: a non-zero return code is not an error.
            inputs, outputs: files that must exist before, and after.
            **fields: values of the template's fields. They, and all arguments, may be or contain futures.

        Returns:
            A future of a `BashResult`. It raises `BashError`, `BashTimeout`, `MissingOutputs` or `FileNotFoundError`.

        Raises:
            TypeError, ValueError: the template is malformed, or a field is missing or not used.

        Example:
            >>> with HPCPoolExecutor(1) as pool:
            ...     pool.bash("echo {text}", text="it's here").result().stdout
            "it's here\\n"
        """
        call = BashCommand.of(
            command,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            timeout=timeout,
            check=check,
            inputs=inputs,
            outputs=outputs,
            fields=fields,
        )
        options = self._options
        if not options.name:
            options = options._replace(name=f"bash({_shortened(command)})")
        return self._submit(options, run_bash, (call,), {})

    def join(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Run `fn` here, in a thread of this process, when its arguments are there; its futures become their results.

        So a graph can grow while it runs: `fn` looks at results, submits more calls, and returns their futures.

        Args:
            fn: returns a future, or lists, tuples, sets or dictionaries with futures in them, at any depth; it should
                not wait for them.
            *args, **kwargs: futures in them (also inside lists, tuples, sets and dictionaries) are replaced by results.

        Returns:
            A future of what `fn` returned, each future in it replaced by its result.

        Example:
            >>> with HPCPoolExecutor(2) as pool:
            ...     def squares(n):
            ...         return [pool.submit(pow, i, 2) for i in range(n)]
            ...     pool.join(squares, pool.submit(int, "4")).result()
            [0, 1, 4, 9]
        """
        self._check_open()
        return self._noted(joining.start(fn, args, kwargs, self._pool._hold, name=self._options.name))


class HPCPoolExecutor(_Calls):
    """Runs calls in worker processes: on this machine, or wherever a `Config` says.

    Swap it for `concurrent.futures.ProcessPoolExecutor`: the arguments, methods, futures and errors are the same. What
    is different: a worker that dies fails only the call that it ran; lambdas, closures and everything of `__main__` can
    be sent; futures among the arguments are dependencies.

    Args:
        config: None: the file that `$HPCPOOL_CONFIG` names, else this machine. A number: `max_workers`. A path: a TOML
            file. Or a `Config`, a `NodePool` or a provider.
        max_workers: workers on each node; None: as the node pool says, else one for each core.
        mp_context: its start method is how workers start ("spawn": each a fresh interpreter; else forked from a clean
            process); None: forked, or spawned if `max_tasks_per_child` is given, as in `ProcessPoolExecutor`.
        initializer: called with `initargs` in each worker before its first call; if it fails, the pool is broken.
        initargs: a tuple.
        max_tasks_per_child: calls that a worker runs before it is replaced; None: no limit.

    Raises:
        ConfigError: the configuration has a fault, or its file cannot be used.
        TypeError, ValueError: another argument is none.

    Example:
        >>> with HPCPoolExecutor(max_workers=2) as pool:
        ...     pool.submit(lambda: "hello").result()
        'hello'
    """

    def __init__(
        self,
        config: ConfigSource | SupportsIndex | None = None,
        *,
        max_workers: SupportsIndex | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
    ) -> None:
        if isinstance(config, SupportsIndex):
            if max_workers is not None:
                raise TypeError("max_workers is given twice, by position and by name")
            config, max_workers = None, config
        max_workers = _whole(max_workers)
        _check_workers(max_workers, initializer, max_tasks_per_child, mp_context)
        self._config = Config.load(config)
        self._max_workers = _count_workers(self._config, max_workers)
        self._mp_context = mp_context if mp_context is not None else _default_context(max_tasks_per_child)
        self._workers_per_node = max_workers or 0
        self._start_method = None if mp_context is None else mp_context.get_start_method()
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._max_tasks_per_child = max_tasks_per_child
        self._functions = FunctionCache()
        self._client: Client | None = None
        self._is_shut_down = False
        self._start_lock = threading.Lock()

    @property
    def _broken(self) -> str | Literal[False]:
        """As in `ProcessPoolExecutor`: why the pool cannot go on, or False."""
        return self._client.broken if self._client is not None else False

    @property
    def _options(self) -> CallOptions:
        return _NO_OPTIONS

    @property
    def _pool(self) -> HPCPoolExecutor:
        return self

    def _submit(self, options: CallOptions, fn: Callable[..., T], args: Any, kwargs: Any) -> TaskFuture[T]:
        client = self._client or self._start()
        if self._is_shut_down:
            self._check_open()
        future: TaskFuture[T] = client.new_future(options.name or _name_of(fn))
        try:
            call, dependencies, blobs = self._pickle(fn, args, kwargs)
        except Exception as error:  # noqa: BLE001 - whatever the user's objects raise while they are pickled
            future._finish(outcomes.raising(outcomes.without_frames(error)))
        else:
            client.submit(future, call, options, dependencies, blobs)
        return future

    def _pickle(
        self, fn: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Payload, Sequence[Future[Any]], tuple[Blob, ...]]:
        function = function_within(fn)
        if function is None:
            return (*pickle_call(fn, args, kwargs), ())
        blob = self._functions.blob_of(function)
        references = {id(function): (load_function, (blob.key,))}
        return (*pickle_call(fn, args, kwargs, references), (blob,))

    def _check_open(self) -> None:
        if self._is_shut_down and not (self._client is not None and self._client.is_holder):
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._client is not None:
            self._client.check_open()

    def _hold(self, close: Callable[[bool], None]) -> tuple[Hold, Client]:
        """Keep the pool open for work at the client that will submit more calls."""
        self._check_open()
        client = self._client or self._start()
        return client.hold(close), client

    def _start(self) -> Client:
        """Start the pool at the first call, so that an executor that is not used costs nothing."""
        with self._start_lock:
            if self._client is None:
                self._check_open()
                lifecycle.check_interpreter()
                setup = Setup(
                    self._workers_per_node,
                    "spawn" if self._mp_context is not None and self._start_method_is_spawn() else "fork",
                    self._max_tasks_per_child or 0,
                    local_setup(self._start_method, self._initializer, self._initargs),
                )
                client = Client(self._config, setup, self._max_workers)
                # Without a reference back: an executor that is dropped lets its client finish and leave.
                weakref.finalize(self, client.close).atexit = False
                self._client = client
            return self._client

    def _start_method_is_spawn(self) -> bool:
        return bool(self._mp_context.get_start_method() == "spawn")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and let everything go when the pending ones have finished.

        Args:
            wait: return when nothing of the pool is left; False: return at once, pending calls still run.
            cancel_futures: cancel what does not run yet.
        """
        with self._start_lock:
            self._is_shut_down = True
        client = self._client
        if client is None or not client.is_usable:
            return
        client.close(cancel_futures=cancel_futures)
        if wait:
            client.join()

    def terminate_workers(self) -> None:
        """Send SIGTERM to all workers, fail all pending calls with `BrokenPool`, and shut down."""
        self._abort(_TERMINATE, "its workers were terminated by terminate_workers()")

    def kill_workers(self) -> None:
        """Kill all workers and what they started, fail all pending calls with `BrokenPool`, and shut down."""
        self._abort(_KILL, "its workers were killed by kill_workers()")

    def _abort(self, signal_number: int, reason: str) -> None:
        self._is_shut_down = True
        if self._client is not None and self._client.is_usable:
            self._client.abort(signal_number, f"the pool cannot go on: {reason}")
            self._client.join()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> Literal[False]:
        """Shut down. After Ctrl-C what is pending is cancelled; a second Ctrl-C kills what runs."""
        current.leave(self)
        cancel = kind is not None and issubclass(kind, KeyboardInterrupt)
        try:
            self.shutdown(wait=True, cancel_futures=cancel)
        except KeyboardInterrupt:
            try:
                if not cancel:
                    self.shutdown(wait=True, cancel_futures=True)
                    raise
            except KeyboardInterrupt:
                self.kill_workers()
                raise
            self.kill_workers()
            raise
        return False

    def __repr__(self) -> str:
        state = "shut down" if self._is_shut_down else "broken" if self._broken else "open"
        return f"<HPCPoolExecutor max_workers={self._max_workers} {state}>"


class ExecutorView(_Calls):
    """An executor on the same pool whose calls have options (see `options`). Shutting it down closes only the view."""

    def __init__(self, pool: HPCPoolExecutor, options: CallOptions) -> None:
        self._viewed = pool
        self._view_options = options
        self._is_shut_down = False
        self._pending: set[Future[Any]] = set()

    @property
    def _options(self) -> CallOptions:
        return self._view_options

    @property
    def _pool(self) -> HPCPoolExecutor:
        return self._viewed

    @property
    def _max_workers(self) -> int:
        return self._viewed._max_workers

    def _submit(self, options: CallOptions, fn: Callable[..., T], args: Any, kwargs: Any) -> TaskFuture[T]:
        self._check_open()
        return self._noted(self._viewed._submit(options, fn, args, kwargs))

    def _check_open(self) -> None:
        client = self._viewed._client
        if self._is_shut_down and not (client is not None and client.is_holder):
            raise RuntimeError("cannot schedule new futures after shutdown")
        self._viewed._check_open()

    def _noted(self, future: TaskFuture[T]) -> TaskFuture[T]:
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls through this view; the pool stays open.

        Args:
            wait: wait for the calls that were submitted through this view.
            cancel_futures: cancel those of them that do not run yet.
        """
        self._is_shut_down = True
        pending = list(self._pending)
        if cancel_futures:
            for future in pending:
                future.cancel()
        client = self._viewed._client
        if wait and client is not None and not client.is_own_thread:
            wait_for(pending)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool | None:
        """Shut the view down, and wait for the calls that were submitted through it."""
        current.leave(self)
        return super().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        given = {
            name: value for name, value in self._view_options._asdict().items() if value != _NO_OPTIONS._asdict()[name]
        }
        return f"<view of {self._viewed!r} with {given}>"


_NO_OPTIONS = CallOptions()


def _whole(max_workers: SupportsIndex | None) -> int | None:
    """Return a plain integer; numpy's are welcome, too."""
    try:
        return None if max_workers is None else operator.index(max_workers)
    except TypeError:
        raise TypeError(f"max_workers must be an integer, not {max_workers!r}") from None


def _check_workers(
    max_workers: int | None, initializer: object, max_tasks_per_child: int | None, mp_context: Any
) -> None:
    """Raise what `ProcessPoolExecutor` raises for these."""
    if max_workers is not None:
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if max_tasks_per_child is not None:
        if not isinstance(max_tasks_per_child, int):
            raise TypeError("max_tasks_per_child must be an integer")
        if max_tasks_per_child <= 0:
            raise ValueError("max_tasks_per_child must be >= 1")
        if mp_context is not None and mp_context.get_start_method(allow_none=False) == "fork":
            raise ValueError(
                "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
                "supply a different mp_context."
            )


def _default_context(max_tasks_per_child: int | None) -> Any:
    import multiprocessing

    return multiprocessing.get_context("spawn") if max_tasks_per_child is not None else multiprocessing.get_context()


def _count_workers(config: Config, max_workers: int | None) -> int:
    """Return how many workers the pool has at its largest."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sum(
        (max_workers or pool.workers_per_node or cores) * pool.nodes_per_block * pool.max_blocks
        for pool in config.node_pools
    )


def _name_of(fn: Callable[..., Any]) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else type(fn).__qualname__


def _shortened(command: Any) -> str:
    text = command if isinstance(command, str) else " ".join(map(str, command))
    return text if len(text) <= 60 else f"{text[:57]}…"


__all__ = ["ExecutorView", "HPCPoolExecutor"]
