from __future__ import annotations

from types import SimpleNamespace

from hpcpool import BlockStatus, Config, NodePoolStatus, NodeStatus, PoolStatus, oversight

NOW = 1_000_000.0


def test_a_status_prints_as_tables():
    status = PoolStatus(
        "open",
        waiting=1,
        pending=20,
        running=3,
        node_pools=(NodePoolStatus("cpu", "slurm", 0, 10, None, 4, "block cpu-1 failed, NODE_FAIL"),),
        blocks=(
            BlockStatus("cpu-2", "cpu", "4711", "serving", "", 4000.0, 61.0, NOW + 90061),
            BlockStatus("cpu-3", "cpu", "", "queued?", "Priority", 5.0, None, None),
        ),
        nodes=(NodeStatus("n0412", "cpu-2", 4, 3), NodeStatus("n0413", "cpu-2", 4, 0, is_cut_off=True)),
        at=NOW,
    )
    assert str(status) == "\n".join(
        [
            "pool open; calls: 3 running, 20 pending, 1 waiting for others; 8 workers",
            "",
            "NODE POOL  PROVIDER  BLOCKS  LIMITS  ORDERED  STARTED",
            "cpu        slurm     2       0..10   -        4",
            "",
            "BLOCK  JOB   STATE    AGE       RUNS      LEFT        NODES  REASON",
            "cpu-2  4711  serving  01:06:40  00:01:01  1-01:01:01  2      -",
            "cpu-3  -     queued?  00:00:05  -         -           0      Priority",
            "",
            "NODE   BLOCK  WORKERS  RUNNING",
            "n0412  cpu-2  4        3",
            "n0413  cpu-2  4        0        cut off",
            "",
            "last failure in cpu: block cpu-1 failed, NODE_FAIL",
        ]
    )


def test_a_pool_that_has_nothing_prints_one_line():
    assert str(PoolStatus("not started")) == (
        "pool not started; calls: 0 running, 0 pending, 0 waiting for others; 0 workers"
    )


def test_a_pool_whose_first_answer_comes_just_too_late_is_starting():
    class Inquiries:
        is_answered = False

        def status(self, timeout_s: float) -> None:
            assert timeout_s == oversight._FIRST_ANSWER_S
            self.is_answered = True

    client = SimpleNamespace(inquiries=Inquiries(), is_over=False, is_io_thread=False, count_tickets=lambda: (1, 3))
    executor = SimpleNamespace(_client=client, _config=Config(), _is_shut_down=False)
    status = oversight.status(executor)
    assert (status.state, status.waiting, status.pending) == ("starting", 1, 2)
