"""What a worker asks the interchange about files, and what it leaves meanwhile in folders that are not its own."""

from __future__ import annotations

import os
from pathlib import Path

from hpcpool import staging
from hpcpool.wire.file_transfer import Answer, FolderSeen, Request, SeeFolder


class Line:
    """A connection, and the port to it, that notes what is in a folder whenever it is asked something."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.asked: list[tuple[Request, list[str]]] = []

    def open(self) -> Line:
        return self

    def say(self, message: Request) -> None:
        self.asked.append((message, os.listdir(self._folder)))

    def hear(self) -> Answer:
        message, _ = self.asked[-1]
        assert isinstance(message, SeeFolder)
        return FolderSeen(bool(message.probe))

    def close(self) -> None:
        return


def test_a_probe_is_in_a_folder_of_the_user_only_while_the_interchange_is_known_to_answer(monkeypatch, tmp_path):
    folder = tmp_path / "the user's"
    folder.mkdir()
    line = Line(folder)
    monkeypatch.setattr(staging, "read_word", lambda run_directory: line)
    stage = staging.CallStage(str(tmp_path / "run"))
    assert stage._has_same(str(folder))
    (first, nothing), (second, probes) = line.asked
    assert (first, nothing) == (SeeFolder(str(folder)), [])
    assert second == SeeFolder(str(folder), *probes)
    assert os.listdir(folder) == []
