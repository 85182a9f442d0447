"""A batch system and a user's work, simulated: `Blocks` runs against them for days in a moment."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hpcpool.core.block_orders import BlockOver, Cancel, Hopeless, Phase, Retire, Sight, Submit, Taken
from hpcpool.core.blocks import BATCH, Blocks, Limits
from hpcpool.core.demand import Demand

POLL_S = 30.0
SLOTS = 4


@dataclass
class Job:
    block: str
    #: When it leaves the queue, when its manager comes (None: it dies instead), and when its time is over.
    starts_at: float
    serves: bool
    walltime_s: float
    ended_at: float | None = None
    sight: Sight | None = None
    idle_since: float | None = None
    has_served: bool = False

    def is_running(self, now: float) -> bool:
        return self.starts_at <= now and self.ended_at is None


@dataclass
class Day:
    """What happened, for a test to look at."""

    most_alive: int = 0
    submissions: list[float] = field(default_factory=list)
    hopeless: str = ""
    lives_s: list[float] = field(default_factory=list)
    cancelled_after_s: list[float] = field(default_factory=list)
    #: How long work waited in all while there was no block at all, not even a queued one, and no outage.
    neglected_s: float = 0.0


class World:
    """Time goes on in events; every answer of the batch system takes its time."""

    def __init__(
        self,
        seed: int,
        limits: Limits,
        work: Callable[[float], int],
        *,
        failing: float = 0.0,
        outages: tuple[tuple[float, float], ...] = (),
        walltime_s: float = 3600.0,
        queue_s: float = 600.0,
    ) -> None:
        self.random = random.Random(seed)
        self.blocks = Blocks((limits,), start_failure_limit=10**9, start_timeout_s=300.0, start_warning_s=30.0)
        self.work, self.failing, self.outages = work, failing, outages
        self.walltime_s, self.queue_s = walltime_s, queue_s
        self.jobs: dict[str, Job] = {}
        self.day = Day()
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(moment, self.now), next(self._numbers), action))

    def run(self, until: float) -> Day:
        self.at(0.0, self.poll)
        self.look()
        while self._events:
            moment = min(self._events[0][0], self.blocks.next_look_at() or float("inf"))
            if moment > until:
                break
            step, self.now = moment - self.now, moment
            if self.work(self.now) and not self.alive and not self.is_out:
                self.day.neglected_s += step
            if self._events[0][0] <= moment:
                heapq.heappop(self._events)[2]()
            self.note_idle()
            self.look()
        return self.day

    @property
    def is_out(self) -> bool:
        return any(start <= self.now < end for start, end in self.outages)

    @property
    def alive(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.ended_at is None]

    def look(self) -> None:
        for order in self.blocks.look([Demand(self.work(self.now))] if self.work(self.now) else [], self.now):
            self.obey(order)
        self.day.most_alive = max(self.day.most_alive, len(self.alive))

    def obey(self, order: object) -> None:
        match order:
            case Submit(block=block):
                self.day.submissions.append(self.now)
                self.at(self.now + self.random.uniform(0.05, 3.0), lambda: self.submitted(block))
            case Cancel(block=block):
                if not self.is_out and (job := self.jobs[block]).ended_at is None:
                    if not job.is_running(self.now):
                        self.day.cancelled_after_s.append(self.now - self.blocks.blocks[block].submitted_at)
                    self.end(job, Sight(Phase.ENDED, reason="CANCELLED"))
            case Retire(block=block):
                self.retire(self.jobs[block])
            case Hopeless(reason=reason):
                self.day.hopeless = reason
            case BlockOver(block=block):
                job = self.jobs.get(block)
                if job is not None and job.has_served:
                    self.day.lives_s.append((job.ended_at or self.now) - job.starts_at)

    def submitted(self, block: str) -> None:
        if self.is_out:
            for order in self.blocks.refused(block, "cannot reach the controller", self.now, is_outage=True):
                self.obey(order)
            return
        starts_at = self.now + self.random.expovariate(1 / self.queue_s)
        job = Job(block, starts_at, self.random.random() >= self.failing, self.walltime_s)
        self.jobs[block] = job
        for order in self.blocks.submitted(block, f"job-{block}", self.now):
            self.obey(order)
        self.at(starts_at + self.random.uniform(1.0, 20.0), lambda: self.begin(job))

    def begin(self, job: Job) -> None:
        if job.ended_at is not None:
            return
        if not job.serves:
            self.end(job, Sight(Phase.FAILED, exit_code=1))
            return
        job.has_served, job.idle_since = True, self.now
        self.blocks.manager_came(job.block, SLOTS)
        self.at(job.starts_at + job.walltime_s, lambda: self.time_is_over(job))

    def time_is_over(self, job: Job) -> None:
        if job.ended_at is None:
            self.end(job, Sight(Phase.FAILED, reason="TIMEOUT", taken=Taken.WALLTIME))

    def end(self, job: Job, sight: Sight) -> None:
        job.ended_at, job.sight = self.now, sight
        if job.has_served:
            self.blocks.manager_left(job.block, self.now)

    def retire(self, job: Job) -> None:
        if job.idle_since is None:
            self.blocks.kept(job.block)
            return
        self.blocks.retired(job.block, self.now)
        self.end(job, Sight(Phase.ENDED))

    def note_idle(self) -> None:
        """Work goes to the oldest blocks; the others are idle."""
        needed = -(-self.work(self.now) // SLOTS)
        serving = sorted((job for job in self.alive if job.has_served), key=lambda job: job.starts_at)
        for number, job in enumerate(serving):
            since = None if number < needed else job.idle_since if job.idle_since is not None else self.now
            if since != job.idle_since:
                job.idle_since = since
                self.blocks.idle(job.block, since)
            elif since is not None and job.block in self.blocks.blocks:
                self.blocks.idle(job.block, since)

    def poll(self) -> None:
        for name, block in list(self.blocks.blocks.items()):
            if block.job:
                for order in self.blocks.seen(name, self.sight(self.jobs[name]), self.now):
                    self.obey(order)
        self.at(self.now + POLL_S, self.poll)

    def sight(self, job: Job) -> Sight:
        if self.is_out or self.random.random() < 0.02:
            return Sight(Phase.UNKNOWN, reason="squeue did not answer within 10 s")
        if job.sight is not None:
            return job.sight
        return Sight(Phase.RUNNING if job.is_running(self.now) else Phase.QUEUED, reason="Priority")


def batch(**changes: object) -> Limits:
    options: dict[str, object] = {"init_blocks": 1, "max_blocks": 8, "max_idle_time_s": 120.0, "pace": BATCH} | changes
    return Limits("a", **options)  # type: ignore[arg-type]
