"""The census: a pipe that all local processes of a pool hold open, and of which the client has the other end.

The client learns from its end that the last of them has gone; they learn from it that the client has.
"""

from __future__ import annotations

import select


def is_client_gone(census: int) -> bool:
    """Whether nobody reads the census any more; False where there is none (-1), as on another host."""
    if census < 0:
        return False
    poll = select.poll()
    poll.register(census, 0)
    return bool(poll.poll(0))
