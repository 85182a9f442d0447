"""A file is there whole or not at all, with a name of its own until then or with none."""

from __future__ import annotations

import os

import pytest

from hpcpool.processes import new_file
from hpcpool.processes.new_file import NewFile


@pytest.fixture(params=["without a name", "with a name"], autouse=True)
def _system(request, monkeypatch):
    if request.param == "with a name":
        monkeypatch.setattr(new_file, "_nameless", lambda folder: None)


def test_it_takes_the_place_of_what_is_there_when_it_is_told_to(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    file = NewFile(str(tmp_path), "x")
    os.write(file.descriptor, b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    file.put_in_place(str(tmp_path / "x"))
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"new"


def test_what_is_not_put_in_its_place_goes(tmp_path):
    file = NewFile(str(tmp_path), "x")
    os.write(file.descriptor, b"half")
    file.close()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_put_in_its_place_goes(tmp_path):
    (tmp_path / "x").mkdir()
    file = NewFile(str(tmp_path), "x")
    with pytest.raises(IsADirectoryError):
        file.put_in_place(str(tmp_path / "x"))
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", ["x" * 255, "\N{SNOWMAN}" * 85, "\N{SNAIL}" * 63])
def test_the_longest_name_does(tmp_path, name):
    file = NewFile(str(tmp_path), name)
    file.put_in_place(str(tmp_path / name))
    file.close()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        NewFile(str(tmp_path / "none"), "x")


def test_what_is_being_written_goes_with_its_process(tmp_path, monkeypatch):
    monkeypatch.undo()
    if new_file._nameless(str(tmp_path)) is None:
        pytest.skip("this file system has no files without a name")
    child = os.fork()
    if child == 0:
        os.write(NewFile(str(tmp_path), "x").descriptor, b"half")
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert list(tmp_path.iterdir()) == []
