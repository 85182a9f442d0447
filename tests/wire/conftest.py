"""A user's `__main__`, and a worker beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.wire.peers import UserMain, Worker


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
