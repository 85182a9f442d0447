from __future__ import annotations

import random

import pytest

from hpcpool.processes import blob_ledger
from hpcpool.processes.blob_ledger import BlobLedger
from hpcpool.wire.functions import Blob
from hpcpool.wire.messages import Define, Forget

A, B = Blob(b"a", b"aaa"), Blob(b"b", b"bb")


def blob(number: int, size: int = 1) -> Blob:
    return Blob(b"%d" % number, b"x" * size)


def test_a_blob_is_told_once():
    ledger = BlobLedger()
    assert ledger.use([A, B]) == [Define(b"a", b"aaa"), Define(b"b", b"bb")]
    assert ledger.use([A]) == []


def test_a_blob_that_nobody_needs_is_kept_for_the_next_submit():
    ledger = BlobLedger()
    ledger.use([A])
    assert ledger.release([A]) == []
    assert ledger.use([A]) == []


def test_too_many_idle_blobs_are_forgotten_those_that_were_used_longest_ago_first(monkeypatch):
    monkeypatch.setattr(blob_ledger, "_IDLE_BLOBS", 2)
    ledger = BlobLedger()
    for number in range(3):
        ledger.use([blob(number)])
    for number in (2, 0):
        assert ledger.release([blob(number)]) == []
    assert ledger.release([blob(1)]) == [Forget(b"2")]
    assert ledger.use([blob(0)]) == []
    assert ledger.use([blob(2)]) == [Define(b"2", b"x")]


def test_too_large_idle_blobs_are_forgotten(monkeypatch):
    monkeypatch.setattr(blob_ledger, "_IDLE_BYTES", 100)
    ledger = BlobLedger()
    for number in range(3):
        ledger.use([blob(number, 50)])
    ledger.use([blob(3, 101)])
    assert ledger.release([blob(0, 50)]) == []
    assert ledger.release([blob(1, 50)]) == []
    assert ledger.release([blob(2, 50)]) == [Forget(b"0")]
    assert ledger.release([blob(3, 101)]) == [Forget(b"1"), Forget(b"2"), Forget(b"3")]


def test_what_is_used_again_no_longer_counts_as_idle(monkeypatch):
    monkeypatch.setattr(blob_ledger, "_IDLE_BYTES", 100)
    ledger = BlobLedger()
    for _ in range(5):
        ledger.use([blob(0, 90)])
        assert ledger.release([blob(0, 90)]) == []


def test_a_blob_in_use_is_never_forgotten(monkeypatch):
    monkeypatch.setattr(blob_ledger, "_IDLE_BLOBS", 0)
    ledger = BlobLedger()
    ledger.use([A])
    ledger.use([A])
    assert ledger.release([A]) == []
    assert ledger.release([A]) == [Forget(b"a")]


@pytest.mark.parametrize("seed", range(30))
def test_the_interchange_always_has_what_a_task_needs_and_no_more_than_allowed(seed, monkeypatch):
    monkeypatch.setattr(blob_ledger, "_IDLE_BLOBS", 3)
    monkeypatch.setattr(blob_ledger, "_IDLE_BYTES", 40)
    chance = random.Random(seed)
    blobs = [blob(number, chance.randint(1, 30)) for number in range(10)]
    ledger, there, tasks = BlobLedger(), {}, []
    for _ in range(300):
        if tasks and chance.random() < 0.5:
            orders = ledger.release(tasks.pop(chance.randrange(len(tasks))))
        else:
            tasks.append(chance.sample(blobs, chance.randint(1, 3)))
            orders = ledger.use(tasks[-1])
        for order in orders:
            if isinstance(order, Define):
                assert order.key not in there
                there[order.key] = order.data
            else:
                del there[order.key]
        needed = {needed.key: needed.data for task in tasks for needed in task}
        assert needed.items() <= there.items()
        idle = there.keys() - needed.keys()
        assert len(idle) <= 3
        assert sum(len(there[key]) for key in idle) <= 40
