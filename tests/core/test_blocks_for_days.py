"""`Blocks` against a simulated batch system: what must hold whatever a day brings."""

from __future__ import annotations

import random

import pytest

from hpcpool.core.blocks import BATCH
from tests.core.block_simulation import POLL_S, SLOTS, Day, World, batch

pytestmark = pytest.mark.once

HOUR = 3600.0
DAY = 24 * HOUR


def bursts(seed: int, until: float = 20 * HOUR):
    """Work that comes and goes: so many tasks from then on."""
    rng = random.Random(seed)
    moments: list[tuple[float, int]] = []
    at = rng.uniform(0, HOUR)
    while at < until:
        moments += [(at, rng.randint(1, 80)), (at + rng.uniform(10, 2 * HOUR), 0)]
        at = moments[-1][0] + rng.uniform(10, HOUR)

    def work(now: float) -> int:
        tasks = 0
        for moment, count in moments:
            if moment > now:
                break
            tasks = count
        return tasks if now < until else 0

    return work


def submissions_are_bounded(day: Day) -> None:
    times = day.submissions
    for number, first in enumerate(times):
        later = [at for at in times[number:] if at <= first + 60]
        assert len(later) <= (BATCH.burst or 0) + 60 / BATCH.period_s + 1, "a submit storm"


@pytest.mark.parametrize("seed", range(12))
def test_a_day_of_bursts_failures_and_outages(seed):
    rng = random.Random(seed)
    starts = sorted(rng.uniform(0, 20 * HOUR) for _ in range(3))
    outages = tuple((at, at + rng.uniform(60, HOUR)) for at in starts)
    limits = batch(min_blocks=seed % 3, init_blocks=max(1, seed % 3))
    world = World(seed, limits, bursts(seed), failing=rng.choice([0.0, 0.1, 0.4]), outages=outages)
    day = world.run(DAY)
    assert day.most_alive <= limits.max_blocks
    assert not day.hopeless
    submissions_are_bounded(day)
    assert len([job for job in world.alive if job.has_served]) <= limits.min_blocks, "idle blocks were kept"
    assert len(world.alive) == limits.min_blocks
    # The longest pause after failures is ten minutes; else there is always a block, or one in the queue.
    assert day.neglected_s <= 0.75 * HOUR, "work was left without blocks"
    assert len(day.submissions) <= 250


def test_a_steady_load_gets_all_its_blocks_and_they_are_replaced_when_their_time_is_over():
    world = World(1, batch(), lambda now: 8 * SLOTS, walltime_s=HOUR, queue_s=60)
    day = world.run(DAY)
    assert day.most_alive == 8
    served_s = sum(day.lives_s) + sum(DAY - job.starts_at for job in world.alive if job.has_served)
    assert served_s > 0.9 * 8 * DAY
    assert len(day.submissions) <= 8 * 25 + 8


def test_blocks_are_not_given_back_and_asked_for_again_under_a_load_that_flickers():
    world = World(2, batch(), lambda now: 8 * SLOTS if int(now) % 60 < 30 else 0, walltime_s=10 * DAY, queue_s=60)
    day = world.run(DAY)
    assert len(day.submissions) <= 8
    assert not day.cancelled_after_s


def test_a_queued_block_is_not_cancelled_in_a_short_lull_but_is_when_the_work_has_gone():
    world = World(3, batch(init_blocks=0), lambda now: 1 if now < 100 or 150 < now < 300 else 0, queue_s=10 * DAY)
    day = world.run(HOUR)
    assert len(day.submissions) == 1
    assert 300 + 120 <= day.cancelled_after_s[0] <= 300 + 120 + POLL_S
    assert world.alive == []


def test_a_batch_system_that_is_away_for_hours_is_not_flooded_and_gets_the_work_when_it_is_back():
    outage = (HOUR, 9 * HOUR)
    world = World(4, batch(init_blocks=0), lambda now: 100 if now > 2 * HOUR else 0, outages=(outage,), queue_s=60)
    day = world.run(12 * HOUR)
    during = [at for at in day.submissions if at < outage[1]]
    assert 10 <= len(during) <= 70
    assert len(world.alive) == 8


def test_blocks_that_always_fail_are_asked_for_less_and_less_often():
    world = World(5, batch(), lambda now: 100, failing=1.0, queue_s=1)
    day = world.run(DAY)
    assert 100 <= len(day.submissions) <= DAY / BATCH.back_off_limit_s + 20


def test_a_scheduler_that_never_answers_about_jobs_is_asked_for_no_more_than_the_limit():
    world = World(6, batch(), lambda now: 1000, outages=((30.0, 2 * DAY),), queue_s=10)
    day = world.run(DAY)
    assert day.most_alive <= 8
    assert len(day.submissions) < 200
