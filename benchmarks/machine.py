"""Facts about the machine and the versions of what was compared, for the record; nothing here is measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil

from benchmarks.peers import PEERS


def facts() -> dict[str, str | int | float]:
    """Return what a reader needs to judge the figures; the load is that of the last minute before the start."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def versions(peers: Iterable[str]) -> dict[str, str]:
    """Return the version of each peer; one of the standard library has that of Python."""
    return {peer: _version(PEERS[peer].distribution) for peer in peers}


def _version(distribution: str | None) -> str:
    if distribution is None:
        return platform.python_version()
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "source tree"
