"""The messages between client, interchange, manager and worker, and their codec; payloads inside stay unopened.

A message is one header frame, a MessagePack array of these structs, with the large buffers of its tasks and
outcomes behind it, one frame each, in the order in which the structs name them (`frames`). Decoding validates types
and never runs code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Generic, TypeVar

import msgspec

#: Raised whenever a message changes shape; peers with another number are refused.
PROTOCOL = 5


class Struct(msgspec.Struct, array_like=True, frozen=False, gc=False):
    """Base of all messages: encoded as an array, not tracked by the garbage collector."""


#: The fields of `core.needs.Needs` and of `core.needs.Shape`.
Needs = tuple[int, int, int, int, int, str, float]
Shape = tuple[int, int, int, int, int]


class Task(Struct, tag=1):
    """One submitted call on its way to a worker."""

    id: int
    #: The inline part of the payload (see `wire.packing.pack`).
    data: bytes
    layout: tuple[int, ...] = ()
    #: How many frames behind the header belong to this task.
    frames: int = 0
    #: Keys of the blobs (functions by value) that the node must hold before the call runs.
    blobs: tuple[bytes, ...] = ()
    #: Higher first.
    priority: int = 0
    #: Seconds from the start of the call; 0 means no limit.
    timeout_s: float = 0.0
    #: The call fails for good when it has killed this many workers.
    crash_limit: int = 1
    #: What it needs; None: nothing in particular, as most.
    needs: Needs | None = None
    #: The function as module:name, or `payload.FIRST_BLOB`, where the payload holds only its positional arguments;
    #: "": it holds the whole call.
    function: str = ""
    #: Its result, if it is large, is to stay where it was made.
    keep: bool = False


class Status(IntEnum):
    """How a call ended."""

    OK = 0
    #: The call raised; the payload is the failure.
    FAILED = 1
    #: The call or its outcome could not be unpickled or pickled; the payload is the failure.
    PAYLOAD_ERROR = 2
    #: The worker died; `crash` tells how.
    CRASHED = 3
    TIMED_OUT = 4
    KILLED = 5
    #: The node vanished and the task may not run again.
    LOST = 6
    #: No node has what the call needs.
    UNAVAILABLE = 7
    #: A kept result that the call depends on was lost, so it was not run.
    BEREFT = 8


class Crash(Struct):
    """What is known of a worker's death."""

    exit_code: int
    signal: int
    out_of_memory: bool
    stderr_tail: str


class Outcome(Struct, tag=2):
    """How one call ended, on its way back to the client."""

    id: int
    status: int
    data: bytes = b""
    layout: tuple[int, ...] = ()
    frames: int = 0
    host: str = ""
    pid: int = 0
    #: Seconds since the epoch, and the run's length in seconds.
    started_at: float = 0.0
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    crash: Crash | None = None
    #: How often the call was run again before, because its worker died or its node was lost.
    reruns: int = 0
    #: The worker still looks at segments of the call's arguments: it has put some of them aside.
    keeps_arguments: bool = False
    #: The content of its segments stays where it was made, until it is fetched or dropped.
    is_kept: bool = False


class Hello(Struct, tag=10):
    """First message of every peer: who it is and what it speaks."""

    protocol: int
    version: str
    python: str
    cloudpickle: str
    host: str = ""
    pid: int = 0


class Register(Struct, tag=11):
    """A manager offers its node, after its `Hello`."""

    block: str
    host: str
    pid: int
    cores: int
    memory_bytes: int = 0
    #: -1: nobody knows.
    accelerators: int = -1
    #: It may come back with this when its connection breaks (see `Rejoin`); b"": it will not.
    token: bytes = b""


class Rejoin(Struct, tag=35):
    """A manager comes back over another connection; what follows goes on where the old one broke."""

    token: bytes
    #: How many messages it has had.
    received: int


class Welcome(Struct, tag=12):
    """The interchange accepts a manager and says how its workers are to be."""

    workers: int
    start_method: str
    max_tasks_per_child: int
    #: Opaque to all but the workers: initializer, sys.path, working directory.
    setup: bytes
    heartbeat_period_s: float
    heartbeat_timeout_s: float
    #: How the node is divided into slots; None: slots of one core.
    shape: Shape | None = None
    #: How many there are, or their ids; those of one text stay together.
    accelerators: int | tuple[str, ...] = 0
    #: How workers are bound to cores: see `core.slots.divide`.
    affinity: str = "none"
    #: Workers tell libraries to start as many threads as the slot has cores.
    limits_threads: bool = False


class Refused(Struct, tag=13):
    """The interchange does not accept this peer; `reason` names both sides and says what to do."""

    reason: str


class Heartbeat(Struct, tag=14):
    """Sent when a peer has been silent for a while."""


class Define(Struct, tag=15):
    """A blob (a function by value) that tasks refer to by its key; sent before the first of them."""

    key: bytes
    data: bytes


class Forget(Struct, tag=16):
    """No task refers to this blob any more."""

    key: bytes


class Cancel(Struct, tag=17):
    """The client gave up this task before it was known to run: drop it, wherever it is."""

    id: int


class Kill(Struct, tag=18):
    """End this task's worker if the task runs, drop the task if it does not."""

    id: int


class Run(Struct):
    """A task that runs."""

    id: int
    #: Process id of its worker.
    pid: int
    #: Seconds since the epoch.
    started_at: float


class Started(Struct, tag=19):
    """These tasks have been running for a while, all on one host."""

    runs: list[Run]
    host: str = ""


class Capacity(Struct, tag=20):
    """A manager's room (slots, and how many tasks it takes in all); from the interchange: the pool's slots."""

    slots: int
    limit: int


class GiveBack(Struct, tag=21):
    """The interchange asks a manager for up to `count` unstarted tasks."""

    count: int


class Returned(Struct, tag=22):
    """A manager gives unstarted tasks back."""

    ids: list[int]


class Broken(Struct, tag=23):
    """The pool cannot go on."""

    reason: str
    #: The traceback of a failed initializer, if that was the reason.
    traceback: str = ""
    #: It is the trouble of the manager's node: where others serve, the pool goes on without it.
    is_nodes_own: bool = False


class Stop(Struct, tag=24):
    """Leave now: when `signal` is 0 after ending the workers in good order, else by that signal to the workers."""

    signal: int = 0


class Setup(Struct, tag=25):
    """The client's first words after `Hello`: what workers need before their first call."""

    workers: int
    start_method: str
    max_tasks_per_child: int
    setup: bytes


class Warn(Struct, tag=26):
    """Something the user should hear of, in words."""

    text: str


class Withdraw(Struct, tag=27):
    """Give up every task that does not run yet; running ones go on."""

    #: Tasks up to this id stay.
    keep: int = 0


class Withdrawn(Struct, tag=28):
    """These tasks were given up before they ran."""

    ids: list[int]


class NodeGone(Struct, tag=29):
    """A manager has gone, and all that came from it has been passed on before this."""

    #: What the names of its segments begin with.
    node: str


class Place(Struct, tag=30):
    """The content of a segment, for another host: the messages behind it refer to it."""

    #: As in the messages that it is for (see `wire.segments`).
    reference: bytes
    frames: int = 1


class Drop(Struct, tag=31):
    """Nobody needs these segments any more, or no task on this node: their paths."""

    paths: list[str]


class Fetch(Struct, tag=33):
    """The content of these kept segments is wanted."""

    references: list[bytes]


class Fetched(Struct, tag=34):
    """A kept segment has come to the client's host: from a manager with its content; or it never will."""

    path: str
    #: Why it will not; "": it has.
    error: str = ""
    frames: int = 0


class AskStatus(Struct, tag=40):
    """The client wants to know how the pool is."""

    #: Comes back in the answer.
    id: int


class NodeState(Struct):
    """A manager as the interchange sees it."""

    host: str
    block: str
    slots: int
    running: int
    is_cut_off: bool = False


class BlockState(Struct):
    """A block that is not known to be over. Times are seconds since the epoch; 0: not yet, or not known."""

    name: str
    pool: str
    job: str
    state: str
    reason: str
    submitted_at: float
    running_since: float
    ends_at: float


class NodePoolState(Struct):
    """A node pool: how many blocks it may have, and what went wrong last."""

    name: str
    provider: str
    min_blocks: int
    max_blocks: int
    #: What the user has ordered; None: nothing.
    ordered: int | None
    started: int
    last_failure: str


class StatusReport(Struct, tag=41):
    """How the pool is."""

    id: int
    #: Tasks at the interchange that no slot has taken, and those in slots.
    pending: int
    running: int
    node_pools: list[NodePoolState]
    blocks: list[BlockState]
    nodes: list[NodeState]


class Scale(Struct, tag=42):
    """The user wants so many blocks; None: as many as the work needs."""

    pool: str
    blocks: int | None = None


class Expect(Struct, tag=43):
    """Somebody waits for so many slots: blocks are wanted as if there were tasks for them."""

    slots: int


class Closing(Struct, tag=44):
    """No more calls come; what waits is to be finished, also where the user has ordered no blocks."""


class Nodes(Struct, tag=32):
    """A task of several nodes has these; sent to the manager that runs it, before the task."""

    id: int
    hosts: list[str]


FromClient = (
    Hello
    | Setup
    | Task
    | Define
    | Forget
    | Cancel
    | Kill
    | Withdraw
    | Stop
    | AskStatus
    | Scale
    | Expect
    | Closing
    | Fetch
    | Drop
)
ToClient = Outcome | Started | Capacity | Withdrawn | Broken | Warn | Refused | NodeGone | StatusReport | Fetched
FromManager = (
    Hello | Register | Outcome | Started | Capacity | Returned | Withdrawn | Broken | Heartbeat | Place | Fetched
)
ToManager = (
    Welcome
    | Refused
    | Task
    | Define
    | Forget
    | Cancel
    | Kill
    | GiveBack
    | Withdraw
    | Stop
    | Heartbeat
    | Place
    | Drop
    | Fetch
    | Nodes
)

T = TypeVar("T")
Frame = Any  # bytes, memoryview, bytearray: whatever has the buffer protocol
_encode = msgspec.msgpack.Encoder().encode


class MessageError(Exception):
    """The peer sent something that is no message of this protocol: drop that peer."""


class Codec(Generic[T]):
    """Encodes and decodes batches of one direction."""

    def __init__(self, types: Any) -> None:
        self._types = types
        #: Made when it is first needed, which takes up to a millisecond: no process needs all of them. Without a lock,
        #: which a forked child could inherit while nobody holds it there.
        self._decode: Callable[[Frame], list[T]] | None = None

    def decode(self, header: Frame) -> list[T]:
        """Return the batch in a header frame; `MessageError` if it is not one."""
        if (decode := self._decode) is None:
            decode = self._decode = msgspec.msgpack.Decoder(list[self._types]).decode  # type: ignore[name-defined]
        try:
            return decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MessageError(f"not a message of protocol {PROTOCOL}: {error}") from error


from_client: Codec[FromClient] = Codec(FromClient)
to_client: Codec[ToClient] = Codec(ToClient)
from_manager: Codec[FromManager] = Codec(FromManager)
to_manager: Codec[ToManager] = Codec(ToManager)
from_returning: Codec[Rejoin] = Codec(Rejoin)


@functools.cache
def _tasks_decoder() -> msgspec.msgpack.Decoder[list[Task]]:
    return msgspec.msgpack.Decoder(list[Task])


@functools.cache
def _outcome_decoder() -> msgspec.msgpack.Decoder[Outcome]:
    return msgspec.msgpack.Decoder(Outcome)


def encode(batch: Sequence[Struct]) -> bytes:
    """Return the header frame of a batch."""
    return _encode(batch)


def encode_one(message: Struct) -> bytes:
    """Return one struct by itself, as it goes over a worker's channel."""
    return _encode(message)


def decode_tasks(data: Frame) -> list[Task]:
    """Return a batch of tasks from a worker's link."""
    return _tasks_decoder().decode(data)


def decode_outcome(data: Frame) -> Outcome:
    """Return an outcome from a worker's link."""
    return _outcome_decoder().decode(data)


def prepare_decoders() -> None:
    """Make what a worker decodes with; all that are forked from this process have it then for their first calls."""
    _tasks_decoder()


class FrameError(MessageError):
    """The header names another number of frames than have come."""


_NO_FRAMES: list[Frame] = []


def deal_frames(batch: Sequence[Any], frames: Sequence[Frame]) -> list[tuple[Any, list[Frame]]]:
    """Pair each message of a batch with the frames that belong to it.

    Raises `FrameError` when the numbers do not add up.
    """
    dealt: list[tuple[Any, list[Frame]]] = []
    if not frames:
        for message in batch:
            if getattr(message, "frames", 0):
                raise FrameError(f"no frames came, {message.frames} were named")
            dealt.append((message, _NO_FRAMES))
        return dealt
    position = 0
    for message in batch:
        count = getattr(message, "frames", 0)
        if count < 0 or position + count > len(frames):
            raise FrameError(f"{len(frames)} frames came, more were named")
        dealt.append((message, list(frames[position : position + count])))
        position += count
    if position != len(frames):
        raise FrameError(f"{len(frames)} frames came, {position} were named")
    return dealt
