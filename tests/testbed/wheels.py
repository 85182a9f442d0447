"""Wheels of what is installed here, so that a test installs it elsewhere without a package index. No test is here."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from hpcpool.providers.ssh.wheel import REQUIREMENTS, build_wheel


def pack_requirements(folder: Path) -> str:
    """Make wheels of all that nodes need in a new folder, and return it."""
    folder.mkdir()
    for name in REQUIREMENTS:
        found = metadata.distribution(name)
        files = {
            path.as_posix(): Path(str(path.locate())).read_bytes()
            for path in found.files or []
            if ".dist-info" not in str(path) and not {"..", "__pycache__"} & set(path.parts)
        }
        wheel = build_wheel(name.replace("-", "_"), found.version, files, {})
        (folder / wheel.name).write_bytes(wheel.content)
    return str(folder)
