"""The executor that users see: the face of a pool. What it does is done by the client."""

from __future__ import annotations

import os
import pickle
import weakref
from collections.abc import Callable
from typing import Any, Literal, SupportsIndex, TypeVar

from msgspec.structs import replace

from hpcpool.arguments import check_workers, count_workers, default_context, whole
from hpcpool.calls import Calls
from hpcpool.config import Config, NodePool
from hpcpool.culprit import note_culprit
from hpcpool.naming import name_of
from hpcpool.processes import lifecycle, outcomes
from hpcpool.processes.client import Client
from hpcpool.processes.hold import Hold
from hpcpool.processes.task_future import TaskFuture
from hpcpool.processes.ticket import CallOptions
from hpcpool.providers.base import Provider
from hpcpool.view import ExecutorView
from hpcpool.wire.functions import FunctionCache, function_within, load_function
from hpcpool.wire.messages import Setup
from hpcpool.wire.payload import PickledCall, call_by_name, pickle_call, pickle_call_of_blob, pickle_value
from hpcpool.wire.segments import SegmentStore
from hpcpool.wire.setup import local_setup

T = TypeVar("T")
Path = str | os.PathLike[str]
ConfigSource = Config | NodePool | Provider | Path

_KILL = 9
_TERMINATE = 15

#: Bytes. A function is one piece of a message, and MessagePack's longest has 2**32 - 1.
_LARGEST_FUNCTION = 2**32 - 1


class HPCPoolExecutor(Calls):
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

    _options = CallOptions()

    def __init__(
        self,
        config: ConfigSource | SupportsIndex | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_workers: SupportsIndex | None = None,
        max_tasks_per_child: int | None = None,
    ) -> None:
        if isinstance(config, SupportsIndex):
            if max_workers is not None:
                raise TypeError("max_workers is given twice, by position and by name")
            config, max_workers = None, config
        max_workers = whole(max_workers)
        check_workers(max_workers, initializer, max_tasks_per_child, mp_context)
        self._config = Config.load(config)
        self._max_workers = count_workers(self._config, max_workers)
        self._mp_context = mp_context if mp_context is not None else default_context(max_tasks_per_child)
        self._workers_per_node = max_workers or 0
        self._start_method = None if mp_context is None else mp_context.get_start_method()
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._max_tasks_per_child = max_tasks_per_child
        self._functions = FunctionCache()
        self._client: Client | None = None
        self._is_shut_down = False

    @property
    def _broken(self) -> str | Literal[False]:
        """As in `ProcessPoolExecutor`: why the pool cannot go on, or False."""
        return self._client.broken if self._client is not None else False

    @property
    def _pool(self) -> HPCPoolExecutor:
        return self

    def _view(self, options: CallOptions) -> ExecutorView:
        return ExecutorView(self, options)

    def _submit(self, options: CallOptions, fn: Callable[..., T], args: Any, kwargs: Any) -> TaskFuture[T]:
        client = self._client or self._start()
        if self._is_shut_down:
            self._check_open()
        future: TaskFuture[T] = client.new_future(options.name or name_of(fn))
        try:
            call = (call_by_name(fn, args) if not kwargs else None) or self._pickle(fn, args, kwargs, client.store)
        except Exception as error:  # noqa: BLE001 - whatever the user's objects raise while they are pickled
            client.check_open()  # a pool that takes no calls says so first, as `ProcessPoolExecutor` does
            note_culprit(error, fn, args, kwargs)
            future._finish(outcomes.raising(outcomes.without_frames(error)))
        else:
            client.submit(future, call, options)
        return future

    def _pickle(self, fn: Callable[..., Any], args: Any, kwargs: Any, store: SegmentStore) -> PickledCall:
        function = function_within(fn)
        if function is None:
            return pickle_call(fn, args, kwargs, store=store)
        blob = self._functions.blob_of(function)
        if len(blob.data) > _LARGEST_FUNCTION:
            raise pickle.PicklingError(
                f"{name_of(fn)} takes {len(blob.data)} bytes along in its closure and the globals that it names, and "
                f"at most {_LARGEST_FUNCTION} can be sent with a function: pass large data as arguments"
            )
        references = {id(function): (load_function, (blob.key,))}
        if fn is function and not kwargs:
            return pickle_call_of_blob(blob, args, references, store)
        return replace(pickle_call(fn, args, kwargs, references, store), blobs=(blob,))

    def _put(self, value: T, name: str) -> TaskFuture[T]:
        client = self._client or self._start()
        self._check_open()
        future: TaskFuture[T] = client.new_future(name or f"put({type(value).__qualname__})")
        no_future = "put() takes no futures: they stand for their results anyway, anywhere in the arguments of calls"
        future._stand_for(pickle_value(value, is_captured=True, store=client.store, no_future=no_future))
        return future

    def _check_open(self) -> None:
        client = self._client
        if client is not None and client.broken:
            client.check_open()  # as ProcessPoolExecutor: that it is broken is said also after shutdown
        if self._is_shut_down and not (client is not None and client.is_holder):
            raise RuntimeError("cannot schedule new futures after shutdown")
        if client is not None:
            client.check_open()

    def _hold(self, close: Callable[[bool], None]) -> tuple[Hold, Client]:
        """Keep the pool open for work at the client that will submit more calls."""
        self._check_open()
        client = self._client or self._start()
        return client.hold(close), client

    def _start(self) -> Client:
        """Start the pool at the first call, so that an executor that is not used costs nothing."""
        with lifecycle.fork_lock:
            if self._client is None:
                self._check_open()
                lifecycle.check_interpreter()
                setup = Setup(
                    self._workers_per_node,
                    "spawn" if self._mp_context.get_start_method() == "spawn" else "fork",
                    self._max_tasks_per_child or 0,
                    self._local_setup(),
                )
                client = Client(self._config, setup, self._max_workers)
                # Without a reference back: an executor that is dropped lets its client finish and leave.
                weakref.finalize(self, client.close).atexit = False
                self._client = client
            return self._client

    def _local_setup(self) -> bytes:
        try:
            return local_setup(self._start_method, self._initializer, self._initargs)
        except Exception as error:
            error.add_note("hpcpool: this happened while initializer and initargs were pickled for the workers")
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and let everything go when the pending ones have finished.

        Args:
            wait: return when nothing of the pool is left; False: return at once, pending calls still run.
            cancel_futures: cancel what does not run yet, but for the oldest calls, as many as there are workers.
        """
        with lifecycle.fork_lock:
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
        with lifecycle.fork_lock:
            self._is_shut_down = True
        client = self._client
        if client is not None and client.is_usable:
            client.abort(signal_number, f"the pool cannot go on: {reason}")
            client.join()

    def _kill(self) -> None:
        self.kill_workers()

    def __repr__(self) -> str:
        state = "shut down" if self._is_shut_down else "broken" if self._broken else "open"
        return f"<HPCPoolExecutor max_workers={self._max_workers} {state}>"
