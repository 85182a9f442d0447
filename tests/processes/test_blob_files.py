from __future__ import annotations

from pathlib import Path

from hpcpool.processes.blob_files import BlobFiles


def test_what_is_defined_can_be_read_until_it_is_forgotten(tmp_path: Path):
    blobs = BlobFiles(str(tmp_path))
    blobs.define(b"\1\2", b"function")
    assert blobs.write([b"\1\2"]) is None
    assert (tmp_path / "0102").read_bytes() == b"function"
    blobs.forget(b"\1\2")
    assert list(tmp_path.iterdir()) == []
    blobs.forget(b"\1\2")


def test_what_cannot_be_written_is_tried_again_when_it_is_needed(tmp_path: Path):
    """As on a full disk, which has room again later; here the folder is not there at first."""
    folder = tmp_path / "node"
    blobs = BlobFiles(str(folder))
    blobs.define(b"\1", b"function")
    assert isinstance(blobs.write([b"\1"]), FileNotFoundError)
    assert blobs.write([b"\2"]) is None  # another one is not concerned
    folder.mkdir()
    assert blobs.write([b"\1"]) is None
    assert (folder / "01").read_bytes() == b"function"


def test_what_was_never_written_can_be_forgotten(tmp_path: Path):
    blobs = BlobFiles(str(tmp_path / "node"))
    blobs.define(b"\1", b"function")
    blobs.forget(b"\1")
    assert blobs.write([b"\1"]) is None
