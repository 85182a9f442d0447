"""`python -m benchmarks.scale`: what a task costs the interchange, however many managers there are.

Simulated managers (`benchmarks.simulated`) connect to a real interchange below a real executor. For each number of
managers it is measured how long they take to register, what a no-op task costs the interchange, and what idling costs.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks import machine, plot, simulated
from hpcpool import Config, HPCPoolExecutor, NodePool

#: The largest: 262 144 slots.
MANAGERS = (1, 64, 512, 4096)
#: Slots of each manager.
SLOTS = 64
#: Descriptors of a process besides one for each manager.
_DESCRIPTORS = 100
#: How long the managers may take to register (seconds).
_REGISTER_S = 300.0


@dataclass(frozen=True)
class Figures:
    """What was measured with one number of managers."""

    managers: int
    slots: int
    tasks: int
    #: Seconds until all managers were welcomed.
    register_s: float
    #: Submitted, run and returned, with all that the client and the simulation cost.
    tasks_per_s: float
    #: CPU time of each process for a task (microseconds).
    interchange_us: float
    client_us: float
    simulation_us: float
    #: CPU time of the interchange while nothing is asked of it, of one core.
    idle_fraction: float
    #: The interchange's resident memory (MiB).
    interchange_mib: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table; return 1 if a limit of the system stands in the way."""
    options = _parser().parse_args(arguments)
    if problem := _limit_in_the_way(max(options.managers)) or (plot.why_not() if options.plot else None):
        print(problem, file=sys.stderr)
        return 1
    facts = machine.facts()
    print(f"{facts['cores']} cores of {facts['cpu']}, {facts['system']}, {facts['python']}; {SLOTS} slots a manager")
    print(_HEADING)
    figures = []
    with simulated.installed():
        for managers in options.managers:
            figures.append(measure(managers, options.tasks, options.rounds, options.idle))
            print(_row(figures[-1], figures[0]), flush=True)
    if options.json is not None:
        record = {"machine": facts, "figures": [asdict(each) for each in figures]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if options.plot is not None:
        plot.draw_scale(figures, options.plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--managers", nargs="+", type=int, default=list(MANAGERS), help=f"default: {MANAGERS}")
    parser.add_argument("--tasks", type=int, default=100_000, help="tasks in each round (default 100000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts (default 3)")
    parser.add_argument("--idle", type=float, default=15.0, help="seconds without tasks (default 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them (PNG, SVG or PDF)")
    return parser


def _limit_in_the_way(managers: int) -> str | None:
    """Say what must be raised so that two processes can hold a descriptor for each manager."""
    needed, hard = managers + _DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or needed <= hard:
        return None
    return (
        f"{managers} managers need {needed} open files in one process, and the hard limit here is {hard}: "
        f"raise it (ulimit -Hn {needed}, or LimitNOFILE= of the service), or measure fewer (--managers)"
    )


def measure(managers: int, tasks: int, rounds: int, idle_s: float) -> Figures:
    """Measure with this many managers."""
    pool = NodePool(simulated.SimulatedProvider(), nodes_per_block=managers, workers_per_node=SLOTS)
    with HPCPoolExecutor(Config(pool, start_timeout_s=_REGISTER_S)) as executor:
        executor.submit(abs, 1).result(_REGISTER_S)
        (interchange,) = psutil.Process().children()
        (simulation,) = interchange.children()
        command = interchange.cmdline()
        register_s = _wait_until_ready(Path(command[command.index("interchange") + 1]) / simulated.READY_FILE)
        processes = (interchange, psutil.Process(), simulation)
        laps = sorted((_lap(executor, tasks, processes) for _ in range(rounds)), key=lambda lap: lap[1])
        wall_s, *used_s = laps[len(laps) // 2]
        idle_before = _cpu_s(interchange)
        time.sleep(idle_s)
        idle_fraction = (_cpu_s(interchange) - idle_before) / idle_s
        memory = interchange.memory_info().rss / 2**20
    each_us = [used / tasks * 1e6 for used in used_s]
    return Figures(managers, managers * SLOTS, tasks, register_s, tasks / wall_s, *each_us, idle_fraction, memory)


def _lap(executor: HPCPoolExecutor, tasks: int, processes: Sequence[psutil.Process]) -> list[float]:
    """Run that many no-op calls; return the wall time and the CPU time of each process (seconds)."""
    before, began = [_cpu_s(process) for process in processes], time.perf_counter()
    for future in [executor.submit(abs, -1) for _ in range(tasks)]:
        future.result()
    wall_s = time.perf_counter() - began
    return [wall_s, *(_cpu_s(process) - used for process, used in zip(processes, before, strict=True))]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _wait_until_ready(path: Path) -> float:
    deadline = time.monotonic() + _REGISTER_S
    while not path.exists() or not path.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all managers were welcomed within {_REGISTER_S:g} s")
        time.sleep(0.01)
    return float(path.read_text())


_HEADING = (
    f"{'managers':>8} {'slots':>7} {'registered in':>13} {'tasks/s':>9} {'interchange':>17} {'client':>8} "
    f"{'simulation':>10} {'idle':>6} {'memory':>8}"
)


def _row(figures: Figures, first: Figures) -> str:
    ratio = f"{figures.interchange_us / first.interchange_us:4.2f}x" if first.interchange_us else "-"
    return (
        f"{figures.managers:8} {figures.slots:7} {figures.register_s:11.1f} s {figures.tasks_per_s:9,.0f} "
        f"{figures.interchange_us:6.1f} us ({ratio:>5}) {figures.client_us:5.1f} us {figures.simulation_us:7.1f} us "
        f"{100 * figures.idle_fraction:5.1f}% {figures.interchange_mib:4.0f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
