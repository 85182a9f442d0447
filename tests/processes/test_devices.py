from __future__ import annotations

import pytest

from hpcpool.processes.devices import usable_accelerators


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": " GPU-8932f937, GPU-46fcd3ce ,"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "0"}, 1),
        ({"ZE_AFFINITY_MASK": "0.0,0.1,1.0"}, 3),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
    ],
)
def test_the_batch_system_says_how_many_there_are(environ, count):
    assert usable_accelerators(environ) == count


def test_else_the_devices_of_nvidia_are_counted(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert usable_accelerators({}, str(tmp_path)) == 3


def test_where_neither_tells_nobody_knows(tmp_path):
    assert usable_accelerators({}, str(tmp_path)) == -1
    assert usable_accelerators({}, str(tmp_path / "missing")) == -1
