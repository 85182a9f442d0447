"""Which peers have been silent for too long. Pure."""

from __future__ import annotations

import math


class Silence:
    """When each peer was last heard of.

    Args:
        period_s: peers say something at least this often (seconds), and it is looked at as often.
        timeout_s: who is silent for so long (seconds) is taken for dead.
    """

    def __init__(self, period_s: float, timeout_s: float) -> None:
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._last_heard: dict[bytes, float] = {}
        self._look_again_at = -math.inf

    @property
    def look_at(self) -> float:
        """When `look` must be called next, if nothing happens before; inf: there is nobody to listen to."""
        return self._look_again_at if self._last_heard else math.inf

    def heard(self, peer: bytes, now: float) -> None:
        """A peer has come, or has said something."""
        self._last_heard[peer] = now

    def doubt(self, peer: bytes, now: float, patience_s: float) -> None:
        """A peer has probably gone: it is silent for too long if it says nothing in so many seconds from now."""
        if peer in self._last_heard:
            self._last_heard[peer] = min(self._last_heard[peer], now - self._timeout_s + patience_s)
            self._look_again_at = min(self._look_again_at, self._last_heard[peer] + self._timeout_s)

    def forget(self, peer: bytes) -> None:
        """A peer has gone, or never says anything; nothing happens if it is not known."""
        self._last_heard.pop(peer, None)

    def look(self, now: float) -> list[tuple[bytes, float]]:
        """Return those that are silent for too long, and for how long (seconds). Costs nothing before `look_at`.

        That is a period from now, or when the first of the others will have been silent for too long.
        """
        due = self._look_again_at
        if now < due:
            return []
        if -math.inf < due < now - self._period_s:
            # We have not been running ourselves (SIGSTOP, a frozen container), and cannot have heard anybody.
            self._last_heard = dict.fromkeys(self._last_heard, now)
        ends = [last + self._timeout_s for last in self._last_heard.values()]
        self._look_again_at = min([now + self._period_s, *(end for end in ends if end > now)])
        return [(peer, now - last) for peer, last in self._last_heard.items() if now >= last + self._timeout_s]
