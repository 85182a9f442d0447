"""How far ahead tasks are sent, by how long they are measured to run."""

from __future__ import annotations

import pytest

from hpcpool.core.pace import node_depth, worker_depth


@pytest.mark.parametrize(
    ("mean_s", "depth"),
    [
        (None, 1),
        (0.0, 65),
        (1e-5, 65),
        (5e-4, 11),
        (0.001, 6),
        (0.0025, 3),
        (0.005, 2),
        (0.01, 2),
        (0.012, 2),
        (0.0121, 1),
        (5.0, 1),
    ],
)
def test_a_worker_has_short_tasks_behind_it_and_no_long_one(mean_s, depth):
    assert worker_depth(mean_s) == depth


@pytest.mark.parametrize(("mean_s", "depth"), [(None, 1), (1e-5, 257), (0.001, 12), (0.01, 3), (0.5, 2), (1.0, 1)])
def test_a_node_has_tasks_ahead_while_they_run_for_less_than_a_second(mean_s, depth):
    assert node_depth(mean_s) == depth
