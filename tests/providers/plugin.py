"""Puts another package's provider in front of the interpreter, the way an installed distribution does it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

_numbers = itertools.count()

#: A provider with options of the types that options may have. It is never opened here: `test_base` has one that is.
QUEUE_PROVIDER = """
from dataclasses import dataclass, field
from typing import ClassVar

@dataclass(frozen=True)
class Login:
    host: str
    port: int = 22

@dataclass(frozen=True)
class QueueProvider:
    kind: ClassVar[str] = "queue"
    max_nodes_per_block: ClassVar[int | None] = None
    partition: str
    priority: int | None = None
    factor: float = 1.0
    flags: tuple[str, ...] = ()
    login: Login | None = None
    made: str = field(init=False, default="here", repr=False)

    def __post_init__(self):
        if self.partition == "closed":
            raise ValueError("the partition 'closed' takes no jobs")

    def open(self, run_dir):
        raise NotImplementedError
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, **kinds: str) -> str:
    """Make a distribution whose one module has this text and whose entry points name `kinds`; return the module's name.

    `kinds` is kind="NameInTheModule".
    """
    module = f"hpcpool_test_plugin_{next(_numbers)}"
    (folder / f"{module}.py").write_text(text, encoding="utf-8")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    points = "\n".join(f"{kind} = {module}:{name}" for kind, name in kinds.items())
    (info / "entry_points.txt").write_text(f"[hpcpool.providers]\n{points}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    return module
