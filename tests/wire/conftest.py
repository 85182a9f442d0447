"""A user's `__main__`, and a worker beside it; examples that are the same in each run, on a machine of any speed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.wire.peers import UserMain, Worker

settings.register_profile("pure", deadline=None, derandomize=True)
settings.load_profile("pure")


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> UserMain:
    return UserMain(monkeypatch)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    try:
        yield made
    finally:
        made.close()
