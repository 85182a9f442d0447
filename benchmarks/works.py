"""What is measured: each work runs on one fresh peer and returns its figures; nothing here knows which peer it is."""

from __future__ import annotations

import collections
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks import calls, processes
from benchmarks.metrics import Better, Metric, Unit, percentile
from benchmarks.peers import Pace, Peer

MIB = 2**20
BYTES_IN_FLIGHT = 8
ARRAY_MIB = 64
SHARED_ARRAY_MIB = 100
#: A peer that sends an array along with each call is as fast with few calls as with many.
ENOUGH_COPIES = 20
#: Time for what a pool still does after its last result (releases, statistics) before it counts as idle.
SETTLE_S = 1.0


class Setting(NamedTuple):
    """What a work is given."""

    #: Makes the pool; it is not warm.
    open_peer: Callable[[], Peer]
    workers: int
    #: How many calls (for `idle`: seconds).
    size: int
    #: How long the import of the peer took in this interpreter.
    import_s: float
    #: The mark in the environment of all processes of this trial.
    mark: str


class Sizes(NamedTuple):
    """How many calls: for a fast peer, for a slow one, and for a quick look at either."""

    fast: int
    slow: int
    quick: int

    def for_pace(self, pace: Pace) -> int:
        return self.fast if pace is Pace.FAST else self.slow


class Work(NamedTuple):
    """One kind of work and the rows of the table that it fills."""

    name: str
    sizes: Sizes
    metrics: tuple[Metric, ...]
    measure: Callable[[Setting], dict[str, float]]


@contextlib.contextmanager
def warm_peer(setting: Setting) -> Iterator[Peer]:
    """Open the peer, let every worker do something, and close it afterwards: neither is part of what is measured."""
    peer = setting.open_peer()
    try:
        peer.gather([peer.submit(calls.pause, 0.01) for _ in range(10 * setting.workers)])
        peer.map(calls.echo, range(100))
        yield peer
    finally:
        peer.close()


def start(setting: Setting) -> dict[str, float]:
    """From the constructor to the first result, and the shutdown of a pool that has done one call."""
    began = time.perf_counter()
    peer = setting.open_peer()
    peer.gather([peer.submit(calls.no_op)])
    started = time.perf_counter()
    peer.close()
    closed = time.perf_counter()
    start_s = started - began
    return {
        "import": setting.import_s,
        "start": start_s,
        "cold_start": setting.import_s + start_s,
        "shutdown": closed - started,
    }


def round_trip(setting: Setting) -> dict[str, float]:
    """One no-op call at a time."""
    with warm_peer(setting) as peer:
        durations_s = [_timed(lambda: peer.gather([peer.submit(calls.no_op)])) for _ in range(setting.size)]
    return {"round_trip_p50": percentile(durations_s, 50), "round_trip_p99": percentile(durations_s, 99)}


def no_op_submit(setting: Setting) -> dict[str, float]:
    """All calls submitted one by one, then all results awaited."""
    with warm_peer(setting) as peer:
        elapsed_s = _timed(lambda: peer.gather([peer.submit(calls.no_op) for _ in range(setting.size)]))
    return {"submit": setting.size / elapsed_s}


def no_op_map(setting: Setting) -> dict[str, float]:
    """One `map` over all, a call for each item."""
    results: list[Any] = []
    with warm_peer(setting) as peer:
        elapsed_s = _timed(lambda: results.extend(peer.map(calls.echo, range(setting.size))))
    _check(results == list(range(setting.size)), "map returned other results than expected")
    return {"map": setting.size / elapsed_s}


def tuned_map(setting: Setting) -> dict[str, float]:
    """The same with whatever chunksize is the fastest."""
    with warm_peer(setting) as peer:
        elapsed_s = min(_timed(lambda size=size: _map_all(peer, setting.size, size)) for size in peer.chunksizes)
    return {"tuned_map": setting.size / elapsed_s}


def _map_all(peer: Peer, count: int, chunksize: int | str) -> None:
    results = peer.map(calls.echo, range(count), chunksize)
    _check(results == list(range(count)), "map returned other results than expected")


def calls_of_10_ms(setting: Setting) -> dict[str, float]:
    return _pauses(setting, 0.010, "calls_10_ms")


def calls_of_1_ms(setting: Setting) -> dict[str, float]:
    return _pauses(setting, 0.001, "calls_1_ms")


def _pauses(setting: Setting, duration_s: float, key: str) -> dict[str, float]:
    """All calls submitted at once; then as many that each worker does in a loop, in one call."""
    share = max(1, setting.size // setting.workers)
    ideal_s = duration_s * setting.size / setting.workers
    with warm_peer(setting) as peer:
        elapsed_s = _timed(lambda: peer.gather([peer.submit(calls.pause, duration_s) for _ in range(setting.size)]))
        bare_s = _timed(
            lambda: peer.gather([peer.submit(calls.pauses, share, duration_s) for _ in range(setting.workers)])
        )
    fraction, bare_fraction = ideal_s / elapsed_s, share * duration_s / bare_s
    return {key: fraction, f"{key}_of_bare": fraction / bare_fraction}


def bytes_echo(setting: Setting) -> dict[str, float]:
    """Bytes there and back, counted once; each payload differs, so that remembering one does not help."""
    body = os.urandom(MIB - 8)
    payloads = collections.deque(number.to_bytes(8, "big") + body for number in range(setting.size))
    with warm_peer(setting) as peer:
        elapsed_s = _timed(lambda: _echo_through_window(peer, payloads))
    return {"bytes_echo": setting.size / elapsed_s}


def _echo_through_window(peer: Peer, payloads: collections.deque[bytes]) -> None:
    in_flight: collections.deque[tuple[bytes, Any]] = collections.deque()
    while payloads or in_flight:
        while payloads and len(in_flight) < BYTES_IN_FLIGHT:
            payload = payloads.popleft()
            in_flight.append((payload, peer.submit(calls.echo, payload)))
        sent, future = in_flight.popleft()
        (came,) = peer.gather([future])
        _check(len(came) == len(sent) and came[:8] == sent[:8], "other bytes came back than were sent")


def array_echo(setting: Setting) -> dict[str, float]:
    """One NumPy array there and back at a time, counted once; worker and client read from every page of it."""
    import numpy

    array = numpy.random.default_rng(0).random(ARRAY_MIB * MIB // 8) + 1.0
    with warm_peer(setting) as peer:
        _echo_array(peer, array)
        elapsed_s = 0.0
        for _ in range(setting.size):
            array[:: calls.FLOATS_PER_PAGE] += 1.0  # an array that was seen before may be remembered
            elapsed_s += _timed(lambda: _echo_array(peer, array))
    return {"array_echo": ARRAY_MIB * setting.size / elapsed_s}


def _echo_array(peer: Peer, array: Any) -> None:
    (came,) = peer.gather([peer.submit(calls.echo_array, array)])
    is_same = came.shape == array.shape and (came[:: calls.FLOATS_PER_PAGE] == array[:: calls.FLOATS_PER_PAGE]).all()
    _check(bool(is_same), "another array came back than was sent")


def shared_array(setting: Setting) -> dict[str, float]:
    """One large NumPy array as an argument of all calls: passed each time, and put once where the peer has a way."""
    import numpy

    array = numpy.random.default_rng(0).random(SHARED_ARRAY_MIB * MIB // 8)
    with warm_peer(setting) as peer:
        count = setting.size if peer.put is not None else min(setting.size, ENOUGH_COPIES)
        passed_s = _timed(lambda: _read_items(peer, lambda: array, array, count))
        if peer.put is None:
            put_s = passed_s
        else:
            put = peer.put
            put_s = _timed(lambda: _read_items(peer, lambda: put(array), array, count))
    return {"shared_array": count / passed_s, "put_array": count / put_s}


def _read_items(peer: Peer, share: Callable[[], Any], array: Any, count: int) -> None:
    argument = share()
    items = peer.gather([peer.submit(calls.item_of, argument, index) for index in range(count)])
    _check(items == array[:count].tolist(), "other items came back than the array has")


def chain(setting: Setting) -> dict[str, float]:
    """Calls that each need the one before; a peer without dependencies waits for each result at the client."""
    with warm_peer(setting) as peer:
        run = _chain_of_futures if peer.takes_futures else _chain_of_results
        elapsed_s = _timed(lambda: _check(run(peer, setting.size) == setting.size, "the chain lost a link"))
    return {"chain": elapsed_s / setting.size}


def _chain_of_futures(peer: Peer, links: int) -> int:
    future = peer.submit(calls.increment, 0)
    for _ in range(links - 1):
        future = peer.submit(calls.increment, future)
    return int(peer.gather([future])[0])


def _chain_of_results(peer: Peer, links: int) -> int:
    number = 0
    for _ in range(links):
        (number,) = peer.gather([peer.submit(calls.increment, number)])
    return number


def tree(setting: Setting) -> dict[str, float]:
    """A sum of ones, two at a time; a peer without dependencies waits for each level at the client."""
    leaves = (setting.size + 1) // 2
    with warm_peer(setting) as peer:
        elapsed_s = _timed(lambda: _check(_sum_of_ones(peer, leaves) == leaves, "the tree lost a leaf"))
    return {"tree": (2 * leaves - 1) / elapsed_s}


def _sum_of_ones(peer: Peer, leaves: int) -> int:
    level = [peer.submit(calls.echo, 1) for _ in range(leaves)]
    while len(level) > 1:
        values = level if peer.takes_futures else peer.gather(level)
        pairs = zip(values[::2], values[1::2], strict=False)
        odd = level[len(level) - len(level) % 2 :]
        level = [peer.submit(calls.add, first, second) for first, second in pairs] + odd
    return int(peer.gather(level)[0])


def bash_true(setting: Setting) -> dict[str, float]:
    """The command `true`, all submitted at once; then as many that each worker starts by itself, in one call."""
    share = max(1, setting.size // setting.workers)
    with warm_peer(setting) as peer:
        peer.gather([peer.bash("true")])
        elapsed_s = _timed(lambda: peer.gather([peer.bash("true") for _ in range(setting.size)]))
        bare_s = _timed(lambda: peer.gather([peer.submit(calls.spawn_bash, share) for _ in range(setting.workers)]))
    rate, bare_rate = setting.size / elapsed_s, share * setting.workers / bare_s
    return {"bash": rate, "bash_of_bare": rate / bare_rate}


def idle(setting: Setting) -> dict[str, float]:
    """CPU time of the client and of every process that the pool started, while nobody asks for anything."""
    with warm_peer(setting) as peer:
        peer.gather([peer.submit(calls.no_op) for _ in range(100)])
        time.sleep(SETTLE_S)
        members = processes.of_trial(setting.mark)
        before_s = processes.cpu_seconds(members)
        time.sleep(setting.size)
        used_s = processes.used_between(before_s, processes.cpu_seconds(members))
    return {"idle": used_s / setting.size}


def _timed(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _check(is_right: bool, otherwise: str) -> None:
    if not is_right:
        raise ValueError(otherwise)


def _seconds(key: str, title: str) -> Metric:
    return Metric(key, title, Unit.SECONDS, Better.LOWER)


def _rate(key: str, title: str, unit: Unit = Unit.PER_SECOND) -> Metric:
    return Metric(key, title, unit, Better.HIGHER)


WORKS = {
    work.name: work
    for work in (
        Work(
            "start",
            Sizes(fast=1, slow=1, quick=1),
            (
                _seconds("import", "import"),
                _seconds("start", "construct to first result"),
                _seconds("cold_start", "cold start: import and first result"),
                _seconds("shutdown", "shutdown"),
            ),
            start,
        ),
        Work(
            "roundtrip",
            Sizes(fast=1000, slow=300, quick=50),
            (
                _seconds("round_trip_p50", "round trip, one at a time, p50"),
                _seconds("round_trip_p99", "round trip, one at a time, p99"),
            ),
            round_trip,
        ),
        Work(
            "submit",
            Sizes(fast=20_000, slow=2_000, quick=200),
            (_rate("submit", "no-op submit, all in flight"),),
            no_op_submit,
        ),
        Work(
            "map",
            Sizes(fast=20_000, slow=2_000, quick=200),
            (_rate("map", "no-op map, chunksize 1"),),
            no_op_map,
        ),
        Work(
            "tuned",
            Sizes(fast=200_000, slow=5_000, quick=200),
            (_rate("tuned_map", "no-op map, best chunksize"),),
            tuned_map,
        ),
        Work(
            "calls10ms",
            Sizes(fast=400, slow=400, quick=40),
            (
                _rate("calls_10_ms", "10 ms calls, fraction of ideal", Unit.FRACTION),
                _rate("calls_10_ms_of_bare", "the same, of a bare loop", Unit.FRACTION),
            ),
            calls_of_10_ms,
        ),
        Work(
            "calls1ms",
            Sizes(fast=2_000, slow=1_000, quick=100),
            (
                _rate("calls_1_ms", "1 ms calls, fraction of ideal", Unit.FRACTION),
                _rate("calls_1_ms_of_bare", "the same, of a bare loop", Unit.FRACTION),
            ),
            calls_of_1_ms,
        ),
        Work(
            "bytes",
            Sizes(fast=200, slow=64, quick=16),
            (_rate("bytes_echo", "1 MiB bytes echo, 8 in flight", Unit.MIB_PER_SECOND),),
            bytes_echo,
        ),
        Work(
            "array",
            Sizes(fast=5, slow=2, quick=1),
            (_rate("array_echo", "64 MiB NumPy array echo", Unit.MIB_PER_SECOND),),
            array_echo,
        ),
        Work(
            "shared",
            Sizes(fast=500, slow=10, quick=2),
            (
                _rate("shared_array", "calls with one 100 MiB array"),
                _rate("put_array", "the same, put once"),
            ),
            shared_array,
        ),
        Work(
            "chain",
            Sizes(fast=1000, slow=1000, quick=50),
            (_seconds("chain", "chain of dependent calls, per link"),),
            chain,
        ),
        Work(
            "tree",
            Sizes(fast=100_000, slow=2_000, quick=50),
            (_rate("tree", "tree of dependent calls"),),
            tree,
        ),
        Work(
            "bash",
            Sizes(fast=1_000, slow=1_000, quick=20),
            (
                _rate("bash", "bash `true`"),
                _rate("bash_of_bare", "the same, of a bare loop of posix_spawn", Unit.FRACTION),
            ),
            bash_true,
        ),
        Work(
            "idle",
            Sizes(fast=5, slow=5, quick=1),
            (Metric("idle", "idle CPU use, of one core", Unit.CORES, Better.LOWER),),
            idle,
        ),
    )
}
