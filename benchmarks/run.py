"""The command line: which peers and works, one trial after the other, then the table and the JSON."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine, plan, plot, report, table, trial
from benchmarks.peers import BASELINE, PEERS
from benchmarks.results import Failed, Result
from benchmarks.works import WORKS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; return 1 if there is no peer or any trial failed."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` and batch systems: as Ctrl-C
    if options.plot is not None and (reason := plot.why_not()):
        _say(reason)
        return 1
    peers = _usable(options.peers)
    if not peers:
        return 1
    rounds = options.rounds or (1 if options.quick else 5)
    limits = trial.Limits(options.workers, options.timeout, options.quick)
    about = report.About(
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.facts(),
        versions=machine.versions(peers),
        settings={"rounds": rounds, **limits._asdict()},
    )
    results = list(_results(plan.trials(peers, options.work, rounds), limits))
    works = [WORKS[name] for name in options.work]
    print(_heading(about))
    print(table.render(results, works, peers, BASELINE))
    print(_footing(peers))
    if options.json is not None:
        options.json.write_text(report.render(results, works, peers, BASELINE, about))
    if options.plot is not None:
        plot.draw_peers(results, works, peers, BASELINE, options.plot)
    return 1 if any(isinstance(result.outcome, Failed) for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run the same work on hpcpool and its peers, side by side, and print one table.",
    )
    parser.add_argument("--work", nargs="+", choices=list(WORKS), default=list(WORKS), help="default: all")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), help="default: all installed")
    parser.add_argument("--rounds", type=_positive, help="times that each work is done on each peer (default 5)")
    parser.add_argument("--workers", type=_positive, default=2, help="workers of each pool (default 2)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one subprocess (default 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round, as JSON, to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the comparison (PNG, SVG or PDF)")
    parser.add_argument(
        "--quick", action="store_true", help="one round of few calls: shows that it works, not how fast"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _usable(peers: Sequence[str]) -> list[str]:
    """Return the peers that can be imported, and say of each other one why it is left out."""
    usable = []
    for peer in dict.fromkeys(peers):
        reason = trial.import_failure(peer)
        if reason is None:
            usable.append(peer)
        else:
            print(f"left out: {peer} cannot be imported here ({reason})")
    return usable


def _results(trials: Sequence[plan.Trial], limits: trial.Limits) -> Iterator[Result]:
    """Run the trials; Ctrl-C ends the one that runs and keeps those before it."""
    for number, one in enumerate(trials, start=1):
        _say(f"[{number}/{len(trials)}] round {one.round + 1}: {one.work} on {one.peer}")
        try:
            result = trial.run(one, limits)
        except KeyboardInterrupt:
            _say("interrupted: the table holds the trials so far")
            return
        if isinstance(result.outcome, Failed):
            _say(f"    FAILED: {result.outcome.reason}")
        yield result


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _heading(about: report.About) -> str:
    facts, settings = about.machine, about.settings
    versions = ", ".join(f"{peer} {version}" for peer, version in about.versions.items())
    return (
        f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_gib']} GiB, {facts['system']}, {facts['python']}; "
        f"load before: {facts['load_before']}\n"
        f"{versions}\n"
        f"{settings['workers']} workers each; medians of {settings['rounds']} round(s); compared with {BASELINE}"
        f"{'; QUICK: too few calls to judge by' if settings['is_quick'] else ''}\n"
    )


def _footing(peers: Sequence[str]) -> str:
    return "".join(f"\n{peer}: {PEERS[peer].note}" for peer in peers if PEERS[peer].note)
