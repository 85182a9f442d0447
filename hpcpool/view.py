"""Views: executors on the same pool whose calls have options."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, Any, TypeVar

from hpcpool.calls import Calls
from hpcpool.processes.task_future import TaskFuture
from hpcpool.processes.ticket import CallOptions

if TYPE_CHECKING:
    from hpcpool.executor import HPCPoolExecutor

T = TypeVar("T")


class ExecutorView(Calls):
    """An executor on the same pool whose calls have options (see `options`). Shutting it down closes only the view."""

    def __init__(self, pool: HPCPoolExecutor, options: CallOptions) -> None:
        self._viewed = pool
        self._view_options = options
        self._is_shut_down = False
        self._pending: set[TaskFuture[Any]] = set()

    @property
    def _options(self) -> CallOptions:
        return self._view_options

    @property
    def _pool(self) -> HPCPoolExecutor:
        return self._viewed

    def _view(self, options: CallOptions) -> ExecutorView:
        view = ExecutorView(self._viewed, options)
        view._is_shut_down = self._is_shut_down
        return view

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

    def _kill(self) -> None:
        for future in list(self._pending):
            future.kill()

    def __repr__(self) -> str:
        options, usual = self._view_options._asdict(), CallOptions._field_defaults
        given = {name: value for name, value in options.items() if value != usual[name]}
        return f"<view of {self._viewed!r} with {given}>"
