"""A fork server that cannot be started ahead is started when it is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcpool.processes import fork_server_process

pytestmark = pytest.mark.live


def test_what_cannot_be_started_ahead_is_started_when_it_is_wanted(tmp_path: Path):
    fork_server_process.start_ahead(-1, str(tmp_path / "no such folder" / "log"))
    started = fork_server_process.start(-1, str(tmp_path / "log"))
    started.channel.close()
    assert started.process.wait(60) == 0


def test_one_that_is_there_and_cannot_be_given_its_log_is_ended(tmp_path: Path):
    fork_server_process.start_ahead(-1, str(tmp_path / "log"))
    (ahead,) = fork_server_process._ahead
    with pytest.raises(FileNotFoundError):
        fork_server_process.start(-1, str(tmp_path / "no such folder" / "log"))
    assert ahead[0].process.returncode == 0
    assert fork_server_process._ahead == []
