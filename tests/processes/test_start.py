"""Processes of a pool run the client's copy of hpcpool, whatever else is installed."""

from __future__ import annotations

import os
import subprocess
import sys

from hpcpool.processes.start_command import start_command


def test_another_copy_on_the_path_is_passed_over(tmp_path):
    other = tmp_path / "hpcpool"
    other.mkdir()
    (other / "__init__.py").write_text("raise RuntimeError('the other copy')")
    command = start_command("no such role", executable=sys.executable)
    run = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert "start.py knows the roles" in run.stderr
