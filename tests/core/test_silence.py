from __future__ import annotations

import math

from hpcpool.core.silence import Silence


def watch(*peers: bytes) -> Silence:
    silence = Silence(period_s=5.0, timeout_s=30.0)
    for peer in peers:
        silence.heard(peer, 0.0)
    return silence


def run(silence: Silence, until: float, *talkers: bytes) -> list[tuple[bytes, float]]:
    """Look every second, as somebody does who runs all the time; return what was seen the first time."""
    for second in range(int(until) + 1):
        for talker in talkers:
            silence.heard(talker, float(second))
        if silent := silence.look(float(second)):
            return silent
    return []


def test_who_is_silent_for_longer_than_the_timeout_is_named_and_others_are_not():
    assert run(watch(b"a", b"b"), 100, b"b") == [(b"a", 30.0)]


def test_who_speaks_is_never_silent():
    assert run(watch(b"a"), 1000, b"a") == []


def test_who_has_gone_is_forgotten():
    silence = watch(b"a")
    silence.forget(b"a")
    silence.forget(b"never seen")
    assert run(silence, 100) == []
    assert silence.look_at == math.inf


def test_after_a_pause_of_our_own_all_get_another_timeout():
    silence = watch(b"a")
    assert silence.look(0.0) == []
    assert silence.look(500.0) == []  # we were stopped: nobody could be heard
    assert [silence.look(float(now)) for now in range(505, 530, 5)] == [[]] * 5
    assert silence.look(530.0) == [(b"a", 30.0)]


def test_between_two_periods_nobody_is_looked_at():
    silence = watch(b"a")
    assert silence.look(0.0) == []
    assert silence.look(4.9) == []
    silence.heard(b"b", -100.0)
    assert silence.look(4.95) == []
    assert silence.look(5.0) == [(b"b", 105.0)]


def test_the_next_look_is_when_somebody_will_have_been_silent_for_too_long():
    silence = watch(b"a", b"b")
    silence.heard(b"a", 2.5)
    assert silence.look(28.0) == []
    assert silence.look_at == 30.0
    assert silence.look(30.0) == [(b"b", 30.0)]
    assert silence.look_at == 32.5
    silence.doubt(b"a", 30.0, patience_s=1.0)
    assert silence.look_at == 31.0
    assert silence.look(31.0) == [(b"a", 30.0), (b"b", 31.0)]
    assert silence.look_at == 36.0


def test_who_has_probably_gone_is_named_earlier_unless_it_speaks():
    silence = watch(b"a", b"b", b"c")
    silence.doubt(b"a", 10.0, patience_s=5.0)
    silence.doubt(b"b", 10.0, patience_s=5.0)
    silence.doubt(b"never seen", 10.0, patience_s=5.0)
    silence.heard(b"b", 12.0)
    assert next(peer for second in range(10, 25) for peer, _ in silence.look(float(second))) == b"a"
    assert silence.look_at < math.inf


def test_a_doubt_lets_nobody_be_silent_for_longer():
    silence = watch(b"a")
    silence.doubt(b"a", 0.0, patience_s=1000.0)
    assert run(silence, 100) == [(b"a", 30.0)]
