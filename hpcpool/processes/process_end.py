"""The end of a process as an event: who waits for it is woken, and does not look again and again."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from hpcpool.errors import is_from_handler

if TYPE_CHECKING:
    import subprocess


def pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a process ends; None where the system has no such thing.

    Raises ProcessLookupError if there is no such process (any more).
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError) as error:
        if is_from_handler(error):
            raise
        return None  # an old kernel, not Linux, forbidden in a container


def has_ended(pid: int, within_s: float) -> bool | None:
    """Wait for the end of a process that nobody reaps meanwhile.

    Returns:
        Whether it ended in time (seconds); None if that cannot be waited for: without pidfds (before Linux 5.3, macOS).
    """
    try:
        descriptor = pidfd(pid)
    except ProcessLookupError:
        return True
    if descriptor is None:
        return None
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, within_s) * 1000))
    finally:
        os.close(descriptor)


def has_child_ended(child: subprocess.Popen[bytes], within_s: float) -> bool:
    """Wait for a child and reap it; False if it has not ended in time (seconds).

    `Popen.wait` with a timeout looks ever more rarely, and finds an end up to 50 ms late.
    """
    if child.poll() is not None:
        return True
    ended = has_ended(child.pid, within_s)
    if ended is False:
        return False
    import subprocess  # whoever has a child has it; a fork server does without

    try:
        child.wait(None if ended else within_s)
    except subprocess.TimeoutExpired:
        return False
    return True
