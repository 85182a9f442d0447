"""How often something may be done: a bucket of tokens that fills by the clock. Pure."""

from __future__ import annotations

import math

import msgspec


class Allowance(msgspec.Struct):
    """Lets `burst` things happen at once, and one more each `period_s` seconds from then on."""

    burst: int
    period_s: float
    #: How many could happen at the moment `_at`; never more than `burst`.
    _tokens: float = 0.0
    _at: float = -math.inf

    def left(self, now: float) -> int:
        """Return how many may happen now."""
        self._fill(now)
        return int(self._tokens)

    def next_at(self, now: float) -> float:
        """Return when there may be one more than may happen now."""
        self._fill(now)
        return now + (int(self._tokens) + 1 - self._tokens) * self.period_s

    def take(self, now: float) -> None:
        """Note that one happens now; the caller has asked before."""
        self._fill(now)
        self._tokens -= 1.0

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(float(self.burst), self._tokens + (now - self._at) / self.period_s)
            self._at = now
