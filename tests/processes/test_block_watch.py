"""When block watch wants to be called. What it tells block control is tested with that, live."""

from __future__ import annotations

import math

from hpcpool.config import Config, NodePool
from hpcpool.core.scheduler import Scheduler
from hpcpool.processes.block_watch import BlockWatch
from hpcpool.providers.slurm import SlurmProvider


class Control:
    """Block control that is told."""

    def __init__(self) -> None:
        self.looks = 0

    def start(self) -> None:
        pass

    def look(self) -> None:
        self.looks += 1


def watch(config: Config) -> tuple[BlockWatch, Scheduler, Control]:
    scheduler, control = Scheduler(1, True), Control()
    made = BlockWatch(config, scheduler, {}, lambda name: None, lambda name: True)
    assert made.look_at == math.inf
    made.start(control)  # type: ignore[arg-type]
    return made, scheduler, control


def test_blocks_that_come_and_go_are_looked_at_ten_times_before_they_have_been_idle_for_too_long():
    made, _, _ = watch(Config(NodePool(SlurmProvider(), max_idle_time=20)))
    assert made.look_at <= 100.0
    made.look(100.0)
    assert made.look_at == 102.0
    made.look(101.0)
    assert made.look_at == 102.0
    made.look(102.5)
    assert made.look_at == 104.5


def test_block_control_hears_that_there_is_less_to_do_although_no_manager_has_come():
    made, scheduler, control = watch(Config(NodePool(SlurmProvider(), max_idle_time=20)))
    scheduler.submitted(1, 0, 1)
    made.call_for_blocks()
    made.look(100.0)
    looks = control.looks
    assert looks
    scheduler.cancelled(1)
    made.look(made.look_at)
    assert control.looks == looks + 1


def test_a_pool_on_this_machine_has_nothing_to_look_at():
    made, _, _ = watch(Config())
    assert made.look_at == math.inf
