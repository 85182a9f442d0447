"""Limits of the operating system that a process at the edge wants raised. Nothing else."""

from __future__ import annotations

import resource


def raise_file_limit() -> None:
    """Allow this process as many open files as the hard limit permits: each worker costs its manager four."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return  # macOS reports an unlimited hard limit that it does not grant
