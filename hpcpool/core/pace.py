"""How many tasks go ahead of their turn, by how long tasks have run. Pure.

Short tasks are sent ahead so that nobody waits for the way there and back; long ones never, so that none waits behind
another while a slot is free elsewhere.
"""

from __future__ import annotations

#: How much measured work a worker holds in advance (seconds). It hides the way to the manager and back, and is enough
#: for calls of 1 ms to be sent several at a time, which costs the interchange a tenth less than one by one.
WORKER_AHEAD_S = 0.005
#: Tasks up to this length (seconds) have one task behind them: it costs less than the wait for the next one's way, and
#: when they turn out to be long, it is taken back.
ONE_AHEAD_S = 0.012
#: The same for a node and the way to the interchange.
NODE_AHEAD_S = 0.01
#: At most so many tasks ahead for a worker, and for each slot of a node.
WORKER_AHEAD_LIMIT = 64
NODE_AHEAD_LIMIT = 256
#: Tasks that run for so long (seconds) are not sent ahead to a node at all.
NOT_AHEAD_S = 1.0
#: Moving work between workers costs some tens of microseconds: less work than this (seconds) is not worth it.
WORTH_MOVING_S = 0.0005
#: No task is taken to be shorter (seconds); a clock may well say 0.
_SHORTEST_S = 1e-6


def worker_depth(mean_s: float | None) -> int:
    """Return how many tasks a worker may hold, the running one included; None: no task has been measured."""
    if mean_s is None:
        return 1
    ahead = min(WORKER_AHEAD_LIMIT, int(WORKER_AHEAD_S / max(mean_s, _SHORTEST_S)))
    return 1 + (ahead or int(mean_s <= ONE_AHEAD_S))


def node_depth(mean_s: float | None) -> int:
    """Return how many tasks a node may hold for each of its slots, the running one included."""
    if mean_s is None or mean_s >= NOT_AHEAD_S:
        return 1
    return 1 + min(NODE_AHEAD_LIMIT, 1 + int(NODE_AHEAD_S / max(mean_s, _SHORTEST_S)))


def worth_moving(mean_s: float | None) -> float:
    """Return from how many tasks on it is worth moving them to another worker."""
    return WORTH_MOVING_S / max(mean_s or 0.0, 1e-9)
