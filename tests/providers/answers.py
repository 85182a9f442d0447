"""Answers of commands of batch systems, whole or from files in tests/data, and a job to ask for. No test is here."""

from __future__ import annotations

from pathlib import Path

from hpcpool.providers.batch import JobRequest
from hpcpool.providers.commands import CommandResult

DATA = Path(__file__).resolve().parent.parent / "data"

UNREACHABLE = CommandResult(("qstat",), None, "", "qstat did not answer within 60 s")


def recorded(system: str, name: str) -> str:
    return (DATA / system / name).read_text(encoding="utf-8")


def said(stdout: str, code: int | None = 0, stderr: str = "", command: str = "qstat") -> CommandResult:
    return CommandResult((command,), code, stdout, stderr)


def job(**changes) -> JobRequest:
    fields = {
        "name": "hpcpool-b1",
        "nodes": 2,
        "body": "module load python\nexec /opt/py/bin/python -m hpcpool.processes.manager_process\n",
        "cwd": "/home/me/project",
        "stdout": "/home/me/.hpcpool/jobs/b1/stdout",
        "stderr": "/home/me/.hpcpool/jobs/b1/stderr",
        "walltime_s": 5400.0,
    }
    return JobRequest(**{**fields, **changes})
