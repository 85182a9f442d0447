"""A job to ask for. No test is here."""

from __future__ import annotations

from hpcpool.providers.batch import JobRequest


def job(**changes) -> JobRequest:
    """The smallest job, with changes."""
    fields = {
        "name": "hpcpool-x1-pool-0",
        "nodes": 1,
        "body": "exec true\n",
        "cwd": "/home/me/run/b0",
        "stdout": "/home/me/run/b0/job.out",
        "stderr": "/home/me/run/b0/job.err",
        "walltime_s": None,
    }
    return JobRequest(**{**fields, **changes})
