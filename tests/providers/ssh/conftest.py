from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.testbed import sshd
from tests.testbed.sshd import Server


@pytest.fixture(scope="session")
def key_folder(tmp_path_factory) -> Path:
    """Keys that servers know, and some that they do not."""
    if not sshd.IS_THERE:
        pytest.skip(sshd.MISSING)
    folder = tmp_path_factory.mktemp("keys")
    sshd.make_key(folder / "user")
    sshd.make_key(folder / "stranger")
    sshd.make_key(folder / "locked", passphrase="secret")
    return folder


@pytest.fixture
def new_server(key_folder, tmp_path) -> Iterator[Callable[..., Server]]:
    """Starts a server with these settings of sshd, at the next address."""
    started: list[Server] = []

    def new(*settings: str) -> Server:
        number = len(started) + 1
        server = Server(tmp_path / f"server{number}", f"127.0.0.{10 + number}", key_folder / "user", settings)
        server.folder.mkdir()
        started.append(server)
        server.start()
        return server

    yield new
    for server in started:
        server.stop()


@pytest.fixture
def server(new_server) -> Server:
    return new_server()
