"""What block control decides by the clock, without its thread and without blocks."""

from __future__ import annotations

from typing import Any

import pytest

from hpcpool.config import Config, NodePool
from hpcpool.processes.block_control import _EARLY_S, BlockControl, Surroundings, _Block
from hpcpool.processes.connection import Connection
from hpcpool.providers import LocalProvider

NOW = 1000.0


def no_connection(block: str) -> Connection:
    raise AssertionError("no block on another host is started here")


@pytest.mark.parametrize(
    ("started_at", "is_registered", "failures"),
    [
        (NOW - _EARLY_S - 1, True, 0),
        (NOW - _EARLY_S + 1, True, 3),  # it may still fail
        (NOW - _EARLY_S - 1, False, 3),
        (NOW - _EARLY_S - 3, True, 3),  # it is older than the last failure, and so proves nothing
    ],
)
def test_failures_are_forgotten_when_a_later_block_has_served_for_a_while(started_at, is_registered, failures):
    pool = NodePool(LocalProvider())
    control = BlockControl(Config(pool), Surroundings("", "", (-1, -1), no_connection), lambda: 1, lambda event: None)
    driver: Any = object()
    control._failures[pool.name] = 3
    control._failed_at[pool.name] = NOW - _EARLY_S - 2
    control._blocks["a"] = _Block("a", pool, driver, "1", started_at, "", registered=is_registered)
    control._forgive(pool, NOW)
    assert control._snapshot(pool).failures == failures
