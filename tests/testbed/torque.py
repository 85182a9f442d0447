"""Torque's commands in front of a Slurm, as Slurm's own wrappers have them. No test is here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.testbed.machine import missing, require


def torque_commands(folder: Path) -> dict[str, str]:
    """Put qsub, qstat and the others into a folder, and return the environment in which they are found.

    The package is unpacked and not installed: its commands would take the place of Grid Engine's.
    """
    require("slurm-client", "libslurm-perl", "libslurmdb-perl")
    run(folder, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "slurm-wlm-torque")
    (package,) = folder.glob("slurm-wlm-torque_*.deb")
    run(folder, "dpkg", "-x", str(package), str(folder))
    programs = folder / "usr" / "bin"
    (programs / "sbatch").symlink_to(str(shutil.which("sbatch")))  # qsub looks for it beside itself
    return {"PATH": f"{programs}:{os.environ['PATH']}"}


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
