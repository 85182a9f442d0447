"""The table: a row for each figure, a column for each peer, medians and how they compare; pure text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.metrics import Metric, Unit, gain
from benchmarks.plan import Trial
from benchmarks.results import Failed, Result, failures, median
from benchmarks.works import Work

#: Units in which "3x faster" can be said; of the others, "3x better".
_OF_SPEED = (Unit.SECONDS, Unit.PER_SECOND, Unit.MIB_PER_SECOND)


class Cell(NamedTuple):
    """A value and how it compares; they are aligned apart."""

    value: str
    comparison: str = ""


def render(results: Sequence[Result], works: Sequence[Work], peers: Sequence[str], baseline: str) -> str:
    """Return the table and, below it, what failed and what left processes behind."""
    header = [Cell(""), *(Cell(peer) for peer in peers)]
    rows = [
        [Cell(metric.title), *(_cell(results, work, metric, peer, baseline) for peer in peers)]
        for work in works
        for metric in work.metrics
    ]
    return "\n".join([*_aligned([header, *rows]), *_notes(results)])


def _cell(results: Sequence[Result], work: Work, metric: Metric, peer: str, baseline: str) -> Cell:
    value = median(results, peer, metric.key)
    failed = len(failures(results, peer, work.name))
    if value is None:
        return Cell("FAILED" if failed else "-")
    base = None if peer == baseline else median(results, baseline, metric.key)
    comparison = "" if base is None else format_comparison(value, base, metric)
    if failed:
        comparison = f"{comparison} ({failed} FAILED)".strip()
    return Cell(format_value(value, metric.unit), comparison)


def format_value(value: float, unit: Unit) -> str:
    """Return a number with its unit, to about three digits.

    >>> format_value(0.000287, Unit.SECONDS), format_value(8612.3, Unit.PER_SECOND), format_value(0.004, Unit.CORES)
    ('287 µs', '8 612/s', '0.4 %')
    """
    match unit:
        case Unit.SECONDS:
            return _format_seconds(value)
        case Unit.PER_SECOND:
            return f"{value:,.0f}/s".replace(",", " ")
        case Unit.MIB_PER_SECOND:
            return f"{value:,.0f} MiB/s".replace(",", " ")
        case Unit.FRACTION:
            return f"{value:.3f}"
        case Unit.CORES:
            return f"{value * 100:.1f} %"


def _format_seconds(value_s: float) -> str:
    if value_s < 0.001:
        return f"{value_s * 1e6:.0f} µs"
    if value_s < 1:
        return f"{value_s * 1e3:.3g} ms" if value_s < 0.1 else f"{value_s * 1e3:.0f} ms"
    return f"{value_s:.2f} s"


def format_comparison(value: float, base: float, metric: Metric) -> str:
    """Return how `value` compares with `base` in words that say which is better; empty where that has no meaning.

    >>> from benchmarks.metrics import Better
    >>> trip = Metric("trip", "round trip", Unit.SECONDS, Better.LOWER)
    >>> format_comparison(0.001, 0.003, trip), format_comparison(0.004, 0.002, trip)
    ('3.00x faster', '2.00x slower')
    """
    times = gain(value, base, metric.better)
    if times is None:
        return ""
    better, worse = ("faster", "slower") if metric.unit in _OF_SPEED else ("better", "worse")
    factor, word = (times, better) if times >= 1 else (1 / times, worse)
    shown = f"{factor:.2f}" if factor < 10 else f"{factor:.0f}"
    return "equal" if shown == "1.00" else f"{shown}x {word}"


def _aligned(rows: Sequence[Sequence[Cell]]) -> list[str]:
    columns = list(zip(*rows, strict=True))
    widths = [
        (max(len(cell.value) for cell in column), max(len(cell.comparison) for cell in column)) for column in columns
    ]
    lines = [
        "   ".join(_padded(cell, *width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _padded(cell: Cell, value_width: int, comparison_width: int) -> str:
    if not comparison_width:
        return cell.value.ljust(value_width)
    return f"{cell.value.ljust(value_width)}  {cell.comparison.ljust(comparison_width)}"


def _notes(results: Sequence[Result]) -> list[str]:
    failed = _grouped((result.trial, result.outcome.reason) for result in results if isinstance(result.outcome, Failed))
    left = _grouped(
        (result.trial, f"{result.left_behind} processes had to be killed after it")
        for result in results
        if result.left_behind
    )
    notes = [f"FAILED: {note}" for note in failed] + [f"LEFT BEHIND: {note}" for note in left]
    return ["", *notes] if notes else []


def _grouped(notes: Iterable[tuple[Trial, str]]) -> list[str]:
    """One line for all trials of a peer with the same text, since a peer that fails tends to fail everywhere alike."""
    trials: dict[tuple[str, str], list[str]] = {}
    for trial, text in notes:
        trials.setdefault((trial.peer, text), []).append(f"{trial.work}/{trial.round + 1}")
    return [f"{peer} ({', '.join(names)}): {text}" for (peer, text), names in trials.items()]
