"""The ways to submit calls, the same for an executor and its views. How a call gets to a worker is not known here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from hpcpool import current, joining, mapping
from hpcpool.options import UNSET, RetryOn, _Unset, changed
from hpcpool.processes.task_future import TaskFuture
from hpcpool.processes.ticket import CallOptions

if TYPE_CHECKING:
    from hpcpool.bash import BashResult
    from hpcpool.executor import HPCPoolExecutor
    from hpcpool.status import PoolStatus
    from hpcpool.view import ExecutorView

T = TypeVar("T")
Path = str | os.PathLike[str]
#: Of a command that names a call.
_NAME_CHARS = 60


class Calls(Executor):
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

    def __reduce__(self) -> Any:
        raise TypeError(
            "an executor cannot be sent to a worker (a function takes along the globals that it names): make another "
            "one there, or submit from here, for instance in join()"
        )

    def __enter__(self) -> Self:
        current.enter(self)  # type: ignore[arg-type]  # there are only the two executors below
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> Literal[False]:
        """Shut down. After Ctrl-C what is pending is cancelled; a second Ctrl-C kills what runs."""
        current.leave(self)  # type: ignore[arg-type]
        is_interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        try:
            self._leave(is_interrupted)
        except KeyboardInterrupt:
            self._kill()
            raise
        return False

    def _leave(self, is_interrupted: bool) -> None:
        try:
            self.shutdown(wait=True, cancel_futures=is_interrupted)
        except KeyboardInterrupt:
            if not is_interrupted:  # this was the first
                self.shutdown(wait=True, cancel_futures=True)
            raise

    def _kill(self) -> None:
        """End what runs, as somebody has lost patience."""
        raise NotImplementedError

    def _view(self, options: CallOptions) -> ExecutorView:
        raise NotImplementedError

    # The arguments have any type: in the place of each may be a future of it.
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture[T]:
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
            >>> from hpcpool import HPCPoolExecutor
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
            iterables: the shortest ends the calls. They are read at once if all of them have a length. If not, what
                1024 calls need (8 for each worker, where that is more) is read at once, and the rest by a thread, so
                far ahead of the results that are taken; with `chunksize="auto"` all of it.
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
            >>> from hpcpool import HPCPoolExecutor
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
        cores: int | _Unset | None = UNSET,
        gpus: int | _Unset | None = UNSET,
        memory: str | int | _Unset | None = UNSET,
        nodes: int | _Unset | None = UNSET,
        ranks: int | _Unset | None = UNSET,
        pool: str | _Unset | None = UNSET,
        time_request: float | _Unset | None = UNSET,
        keep: bool | _Unset = UNSET,
    ) -> ExecutorView:
        """Return a view of this executor whose calls have these options; views can be viewed again.

        What goes through a view is submitted to the pool itself. A subclass that overrides `submit` sees the calls of
        its own `submit` and `map`, as with `ProcessPoolExecutor`; to see those of views it overrides this method, too,
        and returns an executor of its own around the view.

        Args:
            retries: how often a call that failed is run again. Default 0. Lost nodes do not count.
            retry_on: which failures are retried: exception classes, or a function of the exception. Default
                `Exception` (a timeout is one). The function runs in a thread of its own: it may wait before it
                answers, and may use the pool.
            timeout: seconds that a call may run; then its worker and all that it started are ended and the future
                raises the builtin `TimeoutError`. None, the default: no limit.
            priority: a call of higher priority starts first. Default 0.
            crash_limit: a call fails for good when it has killed this many workers. Default: the configuration's, 1.
            name: what messages and `TaskFuture.info` call the calls. Default: the function's name.
            cores, gpus: how many a call takes. It gets as many slots of one node as it needs for all it asks for, and,
                if that is more than one, a worker of its own, which is started for it. None, the default: one slot.
            memory: bytes, or text such as "16GB" (10**9 each) or "16GiB" (2**30 each); takes slots as cores do.
            nodes: whole nodes of one block. The call runs on the first; `HPCPOOL_NODES` in its environment names all.
            ranks: processes that the call will start on its whole nodes (by default one node); told in `HPCPOOL_RANKS`.
            pool: the name of the node pool to run in, or one of the `labels` of several. None, the default: any.
            time_request: seconds that a call is expected to run, if its `timeout` does not say so: it is not started on
                a node that has less left.
            keep: True: a result of 128 KiB or more stays at the node that made it. Its value crosses to this host only
                when somebody asks (`result()`, `exception()`), once. Calls that take the future run at that node if
                there is room, and read it there. It is freed with its future; if its node is lost before, asking raises
                `ResultLost`. With `map` each result is kept. Default False.

        Raises:
            TypeError, ValueError: an option is none, or no node pool can ever run such calls. What is known only when
                nodes have come fails the calls themselves, with `ResourcesUnavailable`.

        Example:
            >>> from hpcpool import HPCPoolExecutor
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
            cores=cores,
            gpus=gpus,
            memory=memory,
            nodes=nodes,
            ranks=ranks,
            pool=pool,
            time_request=time_request,
            keep=keep,
        )
        config = self._pool._config
        if options.needs is not None or (options.timeout_s and any(pool.walltime_s for pool in config.node_pools)):
            from hpcpool.core.needs import NO_NEEDS  # few programs need these
            from hpcpool.feasibility import check_needs

            needs = options.needs or NO_NEEDS
            check_needs(needs, options.timeout_s, config, self._pool._workers_per_node)
        return self._view(options)

    def put(self, value: T) -> TaskFuture[T]:
        """Pickle an object once, for calls that take it as an argument often.

        What comes back is a future that has finished, and stands for the object anywhere in the arguments of calls.
        Only a reference to shared memory travels (small objects, below 128 KiB, travel along). Each call opens a copy
        of its own; the memory of arrays and other large buffers is shared until a call writes to it.

        The object is freed when the future has gone and the calls that it was given to are over.

        Args:
            value: any object that can be pickled; what is changed in it later is not seen by the calls.

        Returns:
            The future. Its `result()` is a copy, too.

        Raises:
            Exception: whatever makes the object impossible to pickle, and what `submit` raises.

        Example:
            >>> from hpcpool import HPCPoolExecutor
            >>> with HPCPoolExecutor(2) as pool:
            ...     table = pool.put(list(range(100_000)))
            ...     [pool.submit(max, table).result(), pool.submit(len, table).result()]
            [99999, 100000]
        """
        return self._noted(self._pool._put(value, self._options.name))

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
            >>> from hpcpool import HPCPoolExecutor
            >>> with HPCPoolExecutor(1) as pool:
            ...     pool.bash("echo {text}", text="it's here").result().stdout
            "it's here\\n"
        """
        # Not imported with the package: a tenth of that time, and many programs run no commands.
        from hpcpool.bash import BashCommand, run_bash

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
            options = options._replace(name=f"bash({_brief(call.command)})")
        return self._submit(options, run_bash, (call,), {})

    def join(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Run `fn` here, in a thread of this process, when its arguments are there; its futures become their results.

        So a graph can grow while it runs: `fn` looks at results, submits more calls, and returns their futures. Of a
        view's options only the name applies.

        Args:
            fn: returns a future, or lists, tuples, sets or dictionaries with futures in them, at any depth; it should
                not wait for them.
            *args, **kwargs: futures in them (also inside lists, tuples, sets and dictionaries) are replaced by results.

        Returns:
            A future of what `fn` returned, each future in it replaced by its result.

        Example:
            >>> from hpcpool import HPCPoolExecutor
            >>> with HPCPoolExecutor(2) as pool:
            ...     def squares(n):
            ...         return [pool.submit(pow, i, 2) for i in range(n)]
            ...     pool.join(squares, pool.submit(int, "4")).result()
            [0, 1, 4, 9]
        """
        self._check_open()
        return self._noted(joining.start(fn, args, kwargs, self._pool._hold, name=self._options.name))

    def status(self) -> PoolStatus:
        """Look at the pool: its calls, node pools, blocks with their jobs, and nodes. `print` shows tables.

        It can be asked at any time, also before the first call and after the end.

        Raises:
            TimeoutError: the interchange has not answered within five seconds.
            RuntimeError: asked in a callback of a future, which keeps the answer from coming.

        Example:
            >>> from hpcpool import HPCPoolExecutor
            >>> with HPCPoolExecutor(2) as pool:
            ...     pool.wait_for_workers(2)
            ...     pool.status().workers
            2
        """
        from hpcpool import oversight

        return oversight.status(self._pool)

    def scale(self, blocks: int | None, pool: str | None = None) -> None:
        """Set how many blocks a node pool should have until further notice, whatever the work needs. Does not wait.

        Blocks are asked for or, if there are too many, given back: those in the queue at once, idle ones next, the
        others when the calls that they run have finished. With 0 the pool rests; `shutdown()` ends the rest, so that
        what is pending gets done.

        Args:
            blocks: 0 to the pool's `max_blocks`; None: as many as the work needs, as it was in the beginning.
            pool: the name of the node pool; None: the only one.

        Raises:
            ValueError: there is no such pool, or it may not have so many blocks.
            RuntimeError: the executor was shut down.
            BrokenPool: the pool cannot go on.
        """
        from hpcpool import oversight

        oversight.scale(self._pool, blocks, pool)

    def wait_for_workers(self, n: int = 1, timeout: float | None = None) -> None:
        """Wait until `n` calls can run at once. Blocks are asked for as if there were calls for them.

        Args:
            n: at least 1.
            timeout: seconds; None: no limit.

        Raises:
            TimeoutError: there are too few; it tells in what state the blocks are, and why.
            BrokenPool: the pool cannot go on.
            ValueError: the node pools can never have so many.
            RuntimeError: the executor was shut down, or this was called in a callback of a future.
        """
        from hpcpool import oversight

        oversight.wait_for_workers(self._pool, n, timeout)

    def job_script(self, pool: str | None = None) -> str:
        """Return the script that the batch system is given for a block; nothing is submitted.

        Of a run only the name of its folder and the number of the block differ. Of this machine it is the command that
        starts a manager.

        Args:
            pool: the name of the node pool; None: the only one.

        Raises:
            ValueError: there is no such pool.
            SubmitError: its batch system cannot have such a block.
        """
        from hpcpool import oversight

        return oversight.job_script(self._pool, pool)


def _brief(command: str | tuple[Any, ...]) -> str:
    """Return a command, short enough for a name; of a long list only the beginning is looked at."""
    words = (command,) if isinstance(command, str) else command[:_NAME_CHARS]
    text = " ".join(map(_word, words))
    return text if len(text) <= _NAME_CHARS else f"{text[: _NAME_CHARS - 3]}…"


def _word(value: Any) -> str:
    return f"<{getattr(value, '_name', 'future')}>" if isinstance(value, Future) else str(value)
