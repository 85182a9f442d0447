"""The subprocess of one trial, after it has imported its peer: does the work and writes the figures to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.peers import PEERS
from benchmarks.works import WORKS, Setting


def command(peer: str, work: str, *, workers: int, size: int, mark: str, scratch: Path) -> list[str]:
    """Return the command of a trial. It imports the peer before anything else, so that the import is timed whole."""
    program = (
        "import time; began = time.perf_counter(); "
        f"{PEERS[peer].import_statement}; "
        "import_s = time.perf_counter() - began; "
        "from benchmarks.child import main; main(import_s)"
    )
    return [sys.executable, "-c", program, peer, work, str(workers), str(size), mark, str(scratch)]


def figures_file(scratch: Path) -> Path:
    """Where a trial leaves its figures."""
    return scratch / "figures.json"


def main(import_s: float) -> None:
    """Run the trial that the command line names."""
    peer, work, workers, size, mark, folder = sys.argv[1:]
    scratch = Path(folder)
    setting = Setting(
        open_peer=lambda: PEERS[peer].open(int(workers), scratch),
        workers=int(workers),
        size=int(size),
        import_s=import_s,
        mark=mark,
    )
    figures_file(scratch).write_text(json.dumps(WORKS[work].measure(setting)))
