"""Limits that the long-lived processes at the edge want raised: open files, and the garbage collector's zeal."""

from __future__ import annotations

import gc
import resource


def raise_file_limit() -> None:
    """Allow this process as many open files as the hard limit permits: each worker costs its manager four."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return  # macOS reports an unlimited hard limit that it does not grant


def limit_open_files(count: int) -> None:
    """Set what this process may have open, as far as the hard limit goes, for it and for what it starts."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    is_within = hard == resource.RLIM_INFINITY or 0 <= count <= hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (count if is_within else hard, hard))


def spare_the_collector() -> None:
    """Look for cycles rarely: what is imported stays, and messages and tasks form none."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
