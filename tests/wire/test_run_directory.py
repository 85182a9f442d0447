"""Run directories: what is made, and that what nobody uses any more is removed, and nothing else."""

from __future__ import annotations

import os

import pytest

from hpcpool.wire import run_directory


@pytest.fixture(autouse=True)
def tmpfs(tmp_path, monkeypatch):
    """A folder in the place of tmpfs."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    monkeypatch.setattr(run_directory, "_TMPFS", str(folder))
    return folder


def made(place, name="hpcpool-abc", outer=None):
    directory = place / name
    directory.mkdir()
    return directory, run_directory.prepare(str(directory), outer)


def test_what_is_made_is_private_and_goes(tmp_path, tmpfs):
    directory, lock = made(tmp_path)
    os.close(lock)
    (shared,) = tmpfs.iterdir()
    assert (directory / "shm").resolve() == shared
    assert run_directory.is_in_memory(str(directory))
    assert (shared / "run").readlink() == directory
    assert {path.name for path in shared.iterdir()} == {"free", "lock", "run"}
    for path in (shared, shared / "free", directory / "spill"):
        assert path.stat().st_mode & 0o777 == 0o700
    run_directory.remove(str(directory))
    assert not directory.exists()
    assert not shared.exists()


def test_without_tmpfs_all_is_in_the_run_directory(tmp_path, tmpfs):
    tmpfs.rmdir()
    directory, lock = made(tmp_path)
    os.close(lock)
    assert (directory / "shm" / "free").is_dir()
    assert not (directory / "shm").is_symlink()
    assert not run_directory.is_in_memory(str(directory))
    inner, inner_lock = made(directory, "hpcpool-inner", outer=str(directory))
    os.close(inner_lock)
    assert not run_directory.is_in_memory(str(inner)), "what is linked to it is on the disk, too"
    run_directory.remove_dead()
    run_directory.remove(str(directory))
    assert not directory.exists()


def test_a_pool_inside_a_call_has_its_directory_inside_the_outer_one(tmp_path, tmpfs):
    outer, outer_lock = made(tmp_path)
    inner, inner_lock = made(outer, "hpcpool-inner", outer=str(outer))
    os.close(outer_lock)
    os.close(inner_lock)
    assert (inner / "shm").resolve().parent == (outer / "shm").resolve()
    run_directory.remove(str(outer))
    assert not any(tmpfs.iterdir())


def test_what_a_killed_pool_has_left_is_removed(tmp_path, tmpfs):
    directory, lock = made(tmp_path)
    (directory / "shm" / "client.1").write_text("x")
    run_directory.remove_dead()
    assert (directory / "shm" / "client.1").exists(), "somebody holds the lock"
    interchange = run_directory.hold(str(directory))
    os.close(lock)
    run_directory.remove_dead()
    assert (directory / "shm" / "client.1").exists(), "another still holds it"
    os.close(interchange)
    run_directory.remove_dead()
    assert not directory.exists()
    assert not any(tmpfs.iterdir())


@pytest.mark.parametrize("has_tmpfs", [True, False])
def test_one_directory_is_removed_when_nobody_holds_its_lock(tmp_path, tmpfs, has_tmpfs):
    if not has_tmpfs:
        tmpfs.rmdir()
    (directory, lock), (other, other_lock) = made(tmp_path), made(tmp_path, "hpcpool-other")
    os.close(other_lock)
    run_directory.remove_if_dead(str(directory))
    assert (directory / "shm" / "lock").exists(), "somebody holds the lock"
    os.close(lock)
    run_directory.remove_if_dead(str(directory))
    run_directory.remove_if_dead(str(directory))
    assert (directory.exists(), (other / "shm" / "lock").exists()) == (False, True)


def test_a_new_pool_at_an_old_path_stays(tmp_path, tmpfs):
    old, lock = made(tmp_path)
    os.close(lock)
    (old / "shm").unlink()
    (old / "spill").rmdir()
    old.rmdir()
    new, lock = made(tmp_path)
    run_directory.remove_dead()
    assert [path.resolve() for path in tmpfs.iterdir()] == [(new / "shm").resolve()]
    os.close(lock)


def test_what_is_not_ours_or_not_ready_stays(tmp_path, tmpfs):
    for name in ("other", "hpcpool-without-lock"):
        (tmpfs / name).mkdir()
    (tmpfs / "hpcpool-file").write_text("")
    (tmpfs / "hpcpool-without-run").mkdir()
    (tmpfs / "hpcpool-without-run" / "lock").write_text("")
    before = sorted(tmpfs.iterdir())
    run_directory.remove_dead()
    assert sorted(tmpfs.iterdir()) == before
