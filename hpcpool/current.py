"""Which `with` blocks of executors the program is inside of, for apps that name no executor. It makes no executor.

A block counts in the thread (or asyncio task) that entered it, and in what copies that one's context. A thread that
entered none itself is taken to be inside the blocks of the main thread, because there a program says where it runs.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from hpcpool.executor import HPCPoolExecutor
    from hpcpool.view import ExecutorView

AnyExecutor = Union["HPCPoolExecutor", "ExecutorView"]


class _Block:
    """One `with` block, from its start to its end."""

    __slots__ = ("executor", "is_of_main_thread")

    def __init__(self, executor: AnyExecutor) -> None:
        # A block that is never left (`__enter__` called by hand) must not keep the executor alive.
        self.executor = weakref.ref(executor)
        self.is_of_main_thread = threading.current_thread() is threading.main_thread()


#: All blocks that were entered and not left, of every thread; the oldest first. (The values mean nothing.)
_open: dict[_Block, None] = {}
#: The blocks of this thread or task; also some that were left elsewhere, which are then not in `_open`.
_entered: ContextVar[tuple[_Block, ...]] = ContextVar("hpcpool_entered", default=())


def enter(executor: AnyExecutor) -> None:
    """A `with` block of this executor begins."""
    block = _Block(executor)
    _open[block] = None
    _entered.set((*_entered.get(), block))


def leave(executor: AnyExecutor) -> None:
    """The innermost `with` block of this executor ends; not always in the context that entered it."""
    block = next((block for block in _seen_from_here() if block.executor() is executor), None)
    if block is None:
        block = next((block for block in reversed(list(_open)) if block.executor() is executor), None)
    if block is not None:
        _open.pop(block, None)
    _entered.set(tuple(block for block in _entered.get() if block in _open))


def innermost() -> AnyExecutor | None:
    """The executor of the innermost block around the caller; None if there is no block."""
    return next((executor for block in _seen_from_here() if (executor := block.executor()) is not None), None)


@contextlib.contextmanager
def inside(executor: AnyExecutor) -> Iterator[None]:
    """Count as inside a block of this executor, which stays open afterwards."""
    enter(executor)
    try:
        yield
    finally:
        leave(executor)


def _seen_from_here() -> list[_Block]:
    """The blocks around the caller, the innermost first."""
    own = [block for block in reversed(_entered.get()) if block in _open]
    return own or [block for block in reversed(list(_open)) if block.is_of_main_thread]


# An executor belongs to the process that made it.
os.register_at_fork(after_in_child=_open.clear)
