"""Asking a user's `retry_on` whether a call is tried again, in threads of their own: it may sleep, or use the pool."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from hpcpool.processes import outcomes
from hpcpool.processes.task_future import Opener


class RetryQuestions:
    """The threads that ask."""

    def __init__(self) -> None:
        self._threads: set[int] = set()

    @property
    def is_asked_here(self) -> bool:
        """True in a thread that asks."""
        return threading.get_ident() in self._threads

    def ask(self, name: str, retry_on: Any, opener: Opener, answer: Callable[[Opener, bool], None]) -> None:
        """Have `retry_on` asked.

        Args:
            name: of the call, for the thread.
            retry_on: see `options`.
            opener: opens the call's outcome.
            answer: takes what opens it from now on, and whether the call is tried again; called in the thread.
        """

        def ask() -> None:
            self._threads.add(threading.get_ident())
            try:
                new_opener, is_retried = outcomes.ask_retry_on(retry_on, opener)
            except BaseException as error:  # noqa: BLE001 - what the user's exception does when it is rebuilt
                new_opener, is_retried = outcomes.raising(outcomes.without_frames(error)), False
            finally:
                self._threads.discard(threading.get_ident())
            answer(new_opener, is_retried)

        try:
            threading.Thread(target=ask, name=f"hpcpool retry_on of {name}", daemon=True).start()
        except RuntimeError:  # no threads any more (see `joining`): better here than not at all
            ask()
