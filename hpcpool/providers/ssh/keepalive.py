"""Notices that the other side of a connection is silent: in a long silence it is asked, and must answer.

The kernel notices a cut by itself, but only on the way to the first hop. Behind a jump host or a proxy command nobody
tells us for a quarter of an hour.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger(__name__)

#: So many periods without an answer, and the other side is gone.
SILENT_PERIODS = 3
#: Servers answer requests that they do not know, too: by a refusal (RFC 4254, section 4).
QUESTION = "keepalive@openssh.com"


class Asked(Protocol):
    """The part of a connection that is needed here."""

    @property
    def keepalive_s(self) -> float:
        """After so many silent seconds the other side is asked; 0: never."""

    def ask(self, question: str) -> None:
        """Return when the other side has answered in any way, or the connection is gone."""

    def close(self) -> None:
        """End it."""


def watch(connection: Asked, wait: Callable[[float | None], bool], heard_at: Callable[[], float]) -> None:
    """Return when a connection is over; close it when the other side has been silent for too long.

    Args:
        wait: waits until it is over, or for so many seconds (None: for ever); whether it is.
        heard_at: when something was heard from the other side for the last time (monotonic clock). Where a lot is on
            the way, an answer may take long.
    """
    period_s = connection.keepalive_s
    while not wait(period_s or None):
        if time.monotonic() - heard_at() >= period_s and not _answers(connection, heard_at):
            logger.warning("%s has been silent for %g s: its connection is closed", connection, _limit_s(connection))
            connection.close()


def _limit_s(connection: Asked) -> float:
    return SILENT_PERIODS * connection.keepalive_s


def _answers(connection: Asked, heard_at: Callable[[], float]) -> bool:
    """Whether the other side answers, however late, as long as something is heard from it."""
    answered = threading.Event()

    def ask() -> None:
        connection.ask(QUESTION)
        answered.set()

    asker = threading.Thread(target=ask, name="hpcpool-keepalive", daemon=True)
    asked_at = time.monotonic()
    asker.start()
    left_s = _limit_s(connection)
    while left_s > 0 and not answered.wait(left_s):
        left_s = max(asked_at, heard_at()) + _limit_s(connection) - time.monotonic()
    return answered.is_set()
