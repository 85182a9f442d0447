from __future__ import annotations

from itertools import product

import pytest

from hpcpool.core.needs import NO_NEEDS, Needs, Shape, width
from hpcpool.core.offer import Offer, refusal

GB = 10**9


def test_a_call_that_needs_nothing_takes_one_slot():
    assert width(NO_NEEDS, Shape(1)) == 1
    assert width(NO_NEEDS, Shape(64, 2, 4 * GB, 4)) == 1


@pytest.mark.parametrize(
    ("needs", "shape", "expected"),
    [
        (Needs(cores=1), Shape(4), 1),
        (Needs(cores=4), Shape(4), 4),
        (Needs(cores=5), Shape(4), None),
        (Needs(cores=5), Shape(4, cores_per_slot=2), 3),
        (Needs(cores=8), Shape(4, cores_per_slot=2), 4),
        (Needs(cores=9), Shape(4, cores_per_slot=2), None),
        (Needs(memory_bytes=GB), Shape(4, memory_per_slot=GB), 1),
        (Needs(memory_bytes=GB + 1), Shape(4, memory_per_slot=GB), 2),
        (Needs(memory_bytes=4 * GB + 1), Shape(4, memory_per_slot=GB), None),
        (Needs(gpus=1), Shape(4), None),
        (Needs(gpus=1), Shape(4, gpus=4, gpus_per_slot=1), 1),
        (Needs(gpus=3), Shape(4, gpus=4, gpus_per_slot=1), 3),
        (Needs(gpus=3), Shape(4, gpus=8, gpus_per_slot=2), 2),
        (Needs(gpus=5), Shape(4, gpus=4, gpus_per_slot=1), None),
        (Needs(cores=2, gpus=1, memory_bytes=3 * GB), Shape(4, 1, GB, 4, 1), 3),
    ],
)
def test_the_scarcest_thing_decides_how_many_slots_a_call_takes(needs, shape, expected):
    assert width(needs, shape) == expected


def test_memory_that_is_not_known_is_not_promised():
    assert width(Needs(memory_bytes=1), Shape(4)) is None


def test_slots_that_share_an_accelerator_are_taken_together():
    shape = Shape(slots=8, gpus=2, gpus_per_slot=0)
    assert [width(Needs(gpus=gpus), shape) for gpus in (1, 2, 3)] == [4, 8, None]


def test_accelerators_that_do_not_divide_evenly_are_all_there_for_a_call_that_takes_the_node():
    shape = Shape(slots=2, gpus=3, gpus_per_slot=1)
    assert [width(Needs(gpus=gpus), shape) for gpus in (1, 2, 3, 4)] == [1, 2, 2, None]


@pytest.mark.parametrize("needs", [Needs(nodes=1), Needs(nodes=3), Needs(ranks=1), Needs(ranks=8, cores=2)])
def test_whole_nodes_are_all_slots(needs):
    assert width(needs, Shape(5)) == 5


def test_a_whole_node_must_have_what_is_asked_for():
    assert width(Needs(nodes=2, gpus=1), Shape(5)) is None


def test_a_width_is_always_enough_and_never_more_than_needed():
    for cores, gpus, memory, slots, cores_per_slot, gpus_per_slot in product(
        range(10), range(6), range(8), range(1, 5), range(1, 4), range(3)
    ):
        shape = Shape(slots, cores_per_slot, 2, slots * gpus_per_slot, gpus_per_slot)
        fits = [
            count
            for count in range(1, slots + 1)
            if count * cores_per_slot >= cores and count * 2 >= memory and count * gpus_per_slot >= gpus
        ]
        expected = fits[0] if fits else None
        assert width(Needs(cores=cores, gpus=gpus, memory_bytes=memory), shape) == expected


def test_needs_are_written_as_the_user_did():
    assert str(Needs(8, 1, 16 * GB, 2, 64, "big", 3600.0)) == (
        "cores=8, gpus=1, memory=16 GB, nodes=2, ranks=64, pool='big', time_request=3600"
    )
    assert str(NO_NEEDS) == "nothing"


# -- offers


@pytest.mark.parametrize(
    ("offer", "cores", "memory", "expected"),
    [
        (Offer("p"), 4, 8 * GB, Shape(4, 1, 2 * GB)),
        (Offer("p", cores_per_worker=3), 8, 8 * GB, Shape(2, 3, 4 * GB)),
        (Offer("p", workers=16), 4, 16 * GB, Shape(16, 1, GB)),
        (Offer("p", memory_per_worker=3 * GB), 8, 8 * GB, Shape(2, 1, 3 * GB)),
        (Offer("p", memory_per_worker=3 * GB), 8, 0, Shape(8, 1, 3 * GB)),
        (Offer("p", memory_per_worker=3 * GB, workers=4), 8, 8 * GB, Shape(4, 1, 3 * GB)),
        (Offer("p", accelerators=(1, 1)), 8, 8 * GB, Shape(2, 1, 4 * GB, 2, 1)),
        (Offer("p", accelerators=(2, 2)), 8, 8 * GB, Shape(2, 1, 4 * GB, 4, 2)),
        (Offer("p", accelerators=(1, 1), workers=4), 8, 8 * GB, Shape(4, 1, 2 * GB, 2, 0)),
        (Offer("p", accelerators=(1, 1, 1), workers=2), 8, 8 * GB, Shape(2, 1, 4 * GB, 3, 1)),
        (Offer("p", cores_per_worker=8), 4, 8 * GB, Shape(0, 8)),
        (Offer("p", memory_per_worker=9 * GB), 4, 8 * GB, Shape(0, 1)),
    ],
)
def test_a_node_is_divided_as_its_pool_says(offer, cores, memory, expected):
    assert offer.shape(cores, memory) == expected


PLAIN = Offer("cpu")
FIXED = Offer("fixed", workers=4, cores_per_worker=2, memory_per_worker=4 * GB, nodes_per_block=3)
GPU = Offer("gpu", accelerators=(1, 1))


@pytest.mark.parametrize(
    ("needs", "offers", "can"),
    [
        (Needs(cores=1000, memory_bytes=1000 * GB), [PLAIN], True),
        (Needs(gpus=1), [PLAIN], False),
        (Needs(gpus=1), [PLAIN, GPU], True),
        (Needs(gpus=1, pool="cpu"), [PLAIN, GPU], False),
        (Needs(gpus=3), [PLAIN, GPU], False),
        (Needs(cores=8), [FIXED], True),
        (Needs(cores=9), [FIXED], False),
        (Needs(memory_bytes=16 * GB), [FIXED], True),
        (Needs(memory_bytes=16 * GB + 1), [FIXED], False),
        (Needs(nodes=3), [FIXED], True),
        (Needs(nodes=4), [FIXED, PLAIN], False),
        (Needs(nodes=2), [PLAIN], False),
        (Needs(ranks=500), [PLAIN], True),
    ],
)
def test_what_no_pool_can_satisfy_is_known_before_there_is_a_node(needs, offers, can):
    reason = refusal(needs, offers)
    assert (reason is None) == can
    if reason is not None:
        assert str(needs) in reason
        assert all(repr(offer.pool) in reason for offer in offers if needs.pool in ("", offer.pool))


def test_a_refusal_never_hits_what_a_node_could_run():
    offers = [
        Offer("p", workers, cores, None, (1,) * gpus) for workers, cores, gpus in product((None, 3), (1, 2), (0, 2))
    ]
    for offer, cores, gpus, memory in product(offers, range(9), range(4), range(0, 9, 2)):
        needs = Needs(cores=cores, gpus=gpus, memory_bytes=memory)
        shapes = [offer.shape(node_cores, node_memory) for node_cores, node_memory in product(range(1, 20), (8, 100))]
        if any(shape.slots and width(needs, shape) for shape in shapes):
            assert refusal(needs, [offer]) is None
