from __future__ import annotations

import random
import typing

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcpool.core import needs as core_needs
from hpcpool.wire import messages
from hpcpool.wire.messages import (
    BlockState,
    Cancel,
    Crash,
    Define,
    Forget,
    FrameError,
    Hello,
    MessageError,
    NodePoolState,
    NodeState,
    Outcome,
    Returned,
    Run,
    Status,
    Task,
    Warn,
    deal_frames,
    decode_outcome,
    decode_tasks,
    encode,
    encode_one,
    from_client,
    from_manager,
    to_client,
    to_manager,
)

DIRECTIONS = {
    "from_client": (from_client, messages.FromClient),
    "to_client": (to_client, messages.ToClient),
    "from_manager": (from_manager, messages.FromManager),
    "to_manager": (to_manager, messages.ToManager),
}
ALL = {cls for _, union in DIRECTIONS.values() for cls in typing.get_args(union)}

VALUES = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    bytes: st.binary(max_size=50),
    str: st.text(max_size=20),
    bool: st.booleans(),
}
VALUES |= {
    list[int]: st.lists(VALUES[int], max_size=5),
    tuple[int, ...]: st.lists(VALUES[int], max_size=5).map(tuple),
    tuple[bytes, ...]: st.lists(VALUES[bytes], max_size=5).map(tuple),
    list[str]: st.lists(VALUES[str], max_size=5),
    list[bytes]: st.lists(st.binary(max_size=20), max_size=5),
    list[Run]: st.lists(st.builds(Run, VALUES[int], VALUES[int], VALUES[float]), max_size=5),
    int | tuple[str, ...]: VALUES[int] | st.lists(VALUES[str], max_size=5).map(tuple),
    messages.Needs | None: st.none() | st.tuples(*[VALUES[int]] * 5, VALUES[str], VALUES[float]),
    messages.Shape | None: st.none() | st.tuples(*[VALUES[int]] * 5),
    Crash | None: st.none() | st.builds(Crash, VALUES[int], VALUES[int], VALUES[bool], VALUES[str]),
}


VALUES[int | None] = st.none() | VALUES[int]


def any_of(cls: type) -> st.SearchStrategy[object]:
    return st.builds(cls, **{name: VALUES[hint] for name, hint in typing.get_type_hints(cls).items() if name[0] != "_"})


for part in (NodeState, BlockState, NodePoolState):
    VALUES[list[part]] = st.lists(any_of(part), max_size=3)


def batches(direction: str) -> st.SearchStrategy[list[object]]:
    union = DIRECTIONS[direction][1]
    return st.lists(st.one_of([any_of(cls) for cls in typing.get_args(union)]), max_size=5)


# -- well-formed


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(data=st.data())
def test_a_batch_arrives_as_it_was_sent(direction, data):
    codec, _ = DIRECTIONS[direction]
    batch = data.draw(batches(direction))
    arrived = codec.decode(encode(batch))
    assert arrived == batch
    assert [type(message) for message in arrived] == [type(message) for message in batch]


@given(any_of(Task))
def test_a_task_arrives_alone(task):
    assert decode_tasks(encode([task])) == [task]


@given(any_of(Outcome))
def test_an_outcome_arrives_alone(outcome):
    assert decode_outcome(encode_one(outcome)) == outcome


def test_a_header_may_be_any_buffer():
    data = encode([Cancel(1)])
    for buffer in (data, bytearray(data), memoryview(data)):
        assert from_client.decode(buffer) == [Cancel(1)]


def test_needs_and_shapes_have_the_fields_that_the_decisions_have():
    needs = core_needs.Needs(8, 1, 10**9, 2, 64, "big", 60.0)
    shape = core_needs.Shape(4, 2, 10**9, 8, 2)
    (task, welcome) = to_manager.decode(
        encode([Task(1, b"", needs=needs), messages.Welcome(4, "fork", 0, b"", 1.0, 5.0, shape)])
    )
    assert core_needs.Needs(*task.needs) == needs
    assert core_needs.Shape(*welcome.shape) == shape


def test_what_a_task_does_not_ask_for_costs_a_byte_each():
    plain = [[1, 1, b"", (), 0, (), 0, 0.0, 1, None, "", False]]
    assert len(encode([Task(1, b"")])) == len(msgspec.msgpack.encode(plain))


def test_a_status_is_a_number_on_the_wire():
    assert to_client.decode(encode([Outcome(1, Status.LOST)]))[0].status == Status.LOST


def test_a_field_that_only_a_newer_peer_knows_is_passed_over():
    assert from_client.decode(msgspec.msgpack.encode([[17, 5, "new", {"x": [1]}]])) == [Cancel(5)]


def test_messages_have_tags_of_their_own():
    tags = [cls.__struct_config__.tag for cls in ALL]
    assert len(set(tags)) == len(tags)


def test_the_header_of_a_task_is_small():
    assert len(encode([Task(1_000_000, b"")])) < 60


# -- malformed


def decode_whatever(direction: str, header: bytes) -> list[object] | None:
    """Decode; None if it was refused in the one way that is allowed."""
    codec, union = DIRECTIONS[direction]
    try:
        batch = codec.decode(header)
    except MessageError:
        return None
    assert all(type(message) in typing.get_args(union) for message in batch)
    for message in batch:
        for name, hint in typing.get_type_hints(type(message)).items():
            if hint in (int, float, bytes, str, bool):
                assert type(getattr(message, name)) is hint or hint is float
    return batch


@pytest.mark.once
@pytest.mark.parametrize("direction", DIRECTIONS)
@given(junk=st.binary(max_size=200))
@settings(max_examples=300)
def test_junk_is_refused(direction, junk):
    decode_whatever(direction, junk)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text() | st.integers(0, 30), inner, max_size=4),
    max_leaves=20,
)
LIKELY = st.lists(st.tuples(st.integers(0, 30), JSON_LIKE, JSON_LIKE, JSON_LIKE).map(list) | JSON_LIKE, max_size=4)


@pytest.mark.once
@pytest.mark.parametrize("direction", DIRECTIONS)
@given(content=JSON_LIKE | LIKELY)
@settings(max_examples=100)
def test_what_is_only_msgpack_is_refused(direction, content):
    decode_whatever(direction, msgspec.msgpack.encode(content))


@pytest.mark.once
@pytest.mark.parametrize("direction", DIRECTIONS)
@given(data=st.data(), seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_a_damaged_batch_is_refused_or_harmless(direction, data, seed):
    header = bytearray(encode(data.draw(batches(direction).filter(bool))))
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(header) + 1)
        match chance.randrange(4):
            case 0:
                header[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del header[place : place + chance.randint(1, 5)]
            case 2:
                header[place:place] = chance.randbytes(chance.randint(1, 5))
            case 3:
                del header[place:]
    decode_whatever(direction, bytes(header))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc0",
        b"\x90\x90",
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x91\x94\x0f\xc4\x01a\xc4\x01b" + b"\x91" * 100_000 + b"\x01",
        b"\x91\x92\x1a\xa1\xff",
        b"\x91\x92\x1a\xc7\x01\xff\x00",
        msgspec.msgpack.encode([[99, 1]]),
        msgspec.msgpack.encode([["17", 1]]),
        msgspec.msgpack.encode([[]]),
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode([Cancel(1), 5]),
        b"\x80\x04N.",  # a pickle
    ],
    ids=range(16),
)
def test_these_are_refused(direction, header):
    with pytest.raises(MessageError, match=f"protocol {messages.PROTOCOL}"):
        DIRECTIONS[direction][0].decode(header)


def test_missing_fields_and_wrong_types_are_refused():
    for content in ([[17]], [[17, "1"]], [[17, 1.5]], [[1, 1]], [[1, 1, "text"]], [[19, [1, "2"]]], [[19, None]]):
        for codec, _ in DIRECTIONS.values():
            with pytest.raises(MessageError):
                codec.decode(msgspec.msgpack.encode(content))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_message_of_another_direction_is_refused(direction):
    codec, union = DIRECTIONS[direction]
    others = ALL - set(typing.get_args(union))
    assert others
    for cls in others:
        content = [[cls.__struct_config__.tag, *[0] * 12]]
        with pytest.raises(MessageError):
            codec.decode(msgspec.msgpack.encode(content))


# -- frames


@given(st.lists(st.integers(0, 3), max_size=6))
def test_each_message_gets_its_own_frames(counts):
    batch = [(Task(n, b"", frames=c) if n % 2 else Outcome(n, 0, frames=c)) for n, c in enumerate(counts)]
    frames = [b"%d" % number for number in range(sum(counts))]
    dealt = deal_frames(batch, frames)
    assert [message for message, _ in dealt] == batch
    assert [len(its_frames) for _, its_frames in dealt] == counts
    assert [frame for _, its_frames in dealt for frame in its_frames] == frames


def test_messages_that_have_no_frames_get_none():
    batch = [Cancel(1), Task(2, b"", frames=1), Hello(1, "", "", "")]
    assert [frames for _, frames in deal_frames(batch, [b"x"])] == [[], [b"x"], []]


@given(
    counts=st.lists(st.integers(-3, 4) | st.integers(-(2**63), 2**64), max_size=5),
    frames=st.lists(st.binary(max_size=1), max_size=6),
)
@example(counts=[-1], frames=[])
@example(counts=[-1, 2], frames=[b""])
@example(counts=[2**64], frames=[b""])
def test_numbers_of_frames_that_do_not_add_up_are_refused(counts, frames):
    batch = [Task(number, b"", frames=count) for number, count in enumerate(counts)]
    if all(count >= 0 for count in counts) and sum(counts) == len(frames):
        deal_frames(batch, frames)
    else:
        with pytest.raises(FrameError, match="frames came"):
            deal_frames(batch, frames)


def test_frames_without_a_message_are_refused():
    for batch in ([], [Forget(b"")], [Returned([1])], [Warn("x")], [Define(b"", b"")]):
        with pytest.raises(FrameError):
            deal_frames(batch, [b"x"])
