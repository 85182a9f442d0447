"""The time limit of the contract tests."""

from __future__ import annotations

import threading

import pytest

from tests.contract.watchdog import TimeLimitPassedError, time_limit


def test_a_wait_without_end_is_interrupted_again_and_again(capfd: pytest.CaptureFixture[str]) -> None:
    forever = threading.Event()
    with time_limit(0.3):  # it may strike anywhere in here
        for _ in range(2):
            with pytest.raises(TimeLimitPassedError):
                forever.wait()
    assert "test_a_wait_without_end" in capfd.readouterr().err


def test_what_is_fast_enough_is_left_alone() -> None:
    done = threading.Event()
    done.set()
    with time_limit(60):
        assert done.wait()
