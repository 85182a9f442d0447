from __future__ import annotations

from pathlib import Path

from hpcpool.processes.memory import cgroup_limits, usable_memory_bytes


def group(root: Path, path: str, name: str, text: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text + "\n", encoding="ascii")


def told(tmp_path: Path, text: str) -> list[int]:
    own = tmp_path / "cgroup"
    own.write_text(text, encoding="utf-8")
    return list(cgroup_limits(str(own), str(tmp_path)))


def test_the_limits_of_all_groups_around_a_process_count(tmp_path):
    group(tmp_path, "system.slice/job_7/step_0", "memory.max", "max")
    group(tmp_path, "system.slice/job_7", "memory.max", "2000")
    group(tmp_path, "system.slice", "memory.max", "9000")
    assert told(tmp_path, "0::/system.slice/job_7/step_0\n") == [2000, 9000]


def test_the_older_groups_are_read_too(tmp_path):
    group(tmp_path, "memory/slurm/uid_1/job_7", "memory.limit_in_bytes", "2000")
    group(tmp_path, "memory", "memory.limit_in_bytes", "9223372036854771712")
    assert told(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/slurm/uid_1/job_7\n") == [2000, 9223372036854771712]


def test_where_there_are_no_groups_there_are_no_limits(tmp_path):
    assert list(cgroup_limits(str(tmp_path / "no-such-file"), str(tmp_path))) == []
    assert told(tmp_path, "0::/elsewhere\n") == []


def test_this_node_has_memory():
    assert usable_memory_bytes() > 2**20
