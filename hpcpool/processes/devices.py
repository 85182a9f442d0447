"""How many accelerators the processes of this node may use; what is made of that is not decided here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from hpcpool.core.slots import DEVICE_VARIABLES

#: What stands in these variables where there is none: of CUDA, and of Slurm.
_NONE = frozenset({"-1", "NoDevFiles"})


def usable_accelerators(environ: Mapping[str, str], device_folder: str = "/dev") -> int:
    """Return how many the batch system allots, else how many of NVIDIA there are; -1: nobody knows.

    Args:
        environ: of this process; the batch system has set `CUDA_VISIBLE_DEVICES` or its like, or has not.
        device_folder: where the kernel shows devices.
    """
    allotted = next((environ[name] for name in DEVICE_VARIABLES if name in environ), None)
    if allotted is not None:
        devices = (device.strip() for device in allotted.split(","))
        return sum(1 for device in devices if device and device not in _NONE)
    try:
        names = os.listdir(device_folder)
    except OSError:
        return -1
    return sum(1 for name in names if re.fullmatch("nvidia[0-9]+", name)) or -1
