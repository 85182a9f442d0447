"""A scheduler with some managers, told of tasks and asked for leases as its tests do it, in few words."""

from __future__ import annotations

from hpcpool.core.needs import Needs
from hpcpool.core.scheduler import Scheduler

A, B, C, D = b"a", b"b", b"c", b"d"


def scheduler(loss_limit: int = 3, rerun_lost: bool = True, **managers: tuple[int, int]) -> Scheduler:
    """A scheduler with managers of so many slots, and tasks in all."""
    made = Scheduler(loss_limit, rerun_lost)
    for name, (slots, limit) in managers.items():
        made.manager_joined(name.encode(), slots, limit)
    return made


def submit(
    made: Scheduler,
    *tasks: int,
    priority: int = 0,
    crash_limit: int = 1,
    home: bytes | None = None,
    time_s: float = 0.0,
    **needs: int | str,
) -> None:
    """Submit tasks that are alike."""
    for task in tasks:
        made.submitted(task, priority, crash_limit, Needs(**needs) if needs else None, time_s, home)


def leases(made: Scheduler, now: float = 0.0) -> dict[bytes, list[int]]:
    """Have it lease what it can; the tasks that each manager gets."""
    return {batch.manager: batch.tasks for batch in made.dispatch(now) if batch.tasks}
