"""Pictures of what was measured: bars for the peers, curves for the numbers of managers. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.metrics import gain
from benchmarks.results import Result, median
from benchmarks.works import Work

if TYPE_CHECKING:
    from benchmarks.scale import Figures

#: Inches for a group of bars, for one bar of it, and for all around them.
_GROUP, _BAR, _AROUND = 0.25, 0.16, 1.2
_WIDTH = 9.0


def draw_peers(
    results: Sequence[Result], works: Sequence[Work], peers: Sequence[str], baseline: str, path: Path
) -> None:
    """Draw how many times better each peer is than the baseline, a group of bars for each row of the table."""
    from matplotlib.figure import Figure

    rows = [
        (metric.title, gains)
        for work in works
        for metric in work.metrics
        if (gains := _gains(results, metric, peers, baseline))
    ]
    others = [peer for peer in peers if peer != baseline]
    figure = Figure(figsize=(_WIDTH, _AROUND + len(rows) * (_GROUP + _BAR * len(others))), layout="constrained")
    axes = figure.add_subplot()
    for number, peer in enumerate(others):
        shift = (number - (len(others) - 1) / 2) * 0.8 / max(1, len(others))
        places = [row + shift for row, (_, gains) in enumerate(rows) if peer in gains]
        widths = [gains[peer] for _, gains in rows if peer in gains]
        bars = axes.barh(places, [width - 1 for width in widths], 0.8 / max(1, len(others)), left=1.0, label=peer)
        axes.bar_label(bars, [f"{width:.3g}" for width in widths], padding=2, fontsize=7)
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"times better than {baseline} (below 1: worse)")
    axes.legend()
    figure.savefig(path)


def _gains(results: Sequence[Result], metric: Any, peers: Sequence[str], baseline: str) -> dict[str, float]:
    """Return how many times better each peer is, of those for which that can be said."""
    base = median(results, baseline, metric.key)
    if base is None:
        return {}
    found = {}
    for peer in peers:
        value = median(results, peer, metric.key)
        times = gain(value, base, metric.better) if value is not None and peer != baseline else None
        if times is not None:
            found[peer] = times
    return found


def draw_scale(figures: Sequence[Figures], path: Path) -> None:
    """Draw what a task costs each process, and how many run in a second, over the number of managers."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(_WIDTH, 3.5), layout="constrained")
    costs, rates = picture.subplots(1, 2)
    managers = [each.managers for each in figures]
    for name in ("interchange", "client", "simulation"):
        costs.plot(managers, [getattr(each, f"{name}_us") for each in figures], marker="o", label=name)
    costs.set(xscale="log", xlabel="managers", ylabel="CPU time for a task (µs)", ylim=(0, None))
    costs.legend()
    rates.plot(managers, [each.tasks_per_s for each in figures], marker="o")
    rates.set(xscale="log", xlabel="managers", ylabel="tasks/s", ylim=(0, None))
    picture.savefig(path)


def why_not() -> str | None:
    """Say why nothing can be drawn here; None if it can."""
    try:
        import matplotlib.figure  # noqa: F401 - is it there?
    except ImportError:
        return "--plot needs matplotlib: pip install 'hpcpool[plot]'"
    return None
