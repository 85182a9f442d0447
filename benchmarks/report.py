"""The record of a run as JSON: every round of every trial, the medians, the machine and the versions; pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from benchmarks.metrics import gain
from benchmarks.results import Measured, Result, median
from benchmarks.works import Work

#: Goes up when a reader of the file would have to change.
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class About:
    """When, where and on what a run was made."""

    started_at: str
    machine: Mapping[str, str | int | float]
    versions: Mapping[str, str]
    settings: Mapping[str, int | float]


def render(
    results: Sequence[Result],
    works: Sequence[Work],
    peers: Sequence[str],
    baseline: str,
    about: About,
) -> str:
    """Return the JSON text."""
    record = {
        "format": FORMAT,
        **dataclasses.asdict(about),
        "baseline": baseline,
        "figures": [
            _figure(results, work, position, peers, baseline) for work in works for position in range(len(work.metrics))
        ],
        "trials": [_trial(result) for result in results],
    }
    return json.dumps(record, indent=1) + "\n"


def _figure(
    results: Sequence[Result], work: Work, position: int, peers: Sequence[str], baseline: str
) -> dict[str, object]:
    metric = work.metrics[position]
    medians = {peer: median(results, peer, metric.key) for peer in peers}
    base = medians.get(baseline)
    return {
        "work": work.name,
        "key": metric.key,
        "title": metric.title,
        "unit": metric.unit.value,
        "better": metric.better.value,
        "median": medians,
        "times_better_than_baseline": {
            peer: None if value is None or base is None else gain(value, base, metric.better)
            for peer, value in medians.items()
        },
    }


def _trial(result: Result) -> dict[str, object]:
    outcome = result.outcome
    return {
        **result.trial._asdict(),
        "size": result.size,
        "wall_s": result.wall_s,
        "left_behind": result.left_behind,
        **(
            {"figures": outcome.figures}
            if isinstance(outcome, Measured)
            else {"failed": outcome.reason, "output": outcome.output}
        ),
    }
