"""The benchmark harness: its pure parts, its works on a pool that runs nothing, and one quick run of everything."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plan, plot, processes, report, scale, table, trial
from benchmarks.metrics import Better, Metric, Unit, gain, percentile
from benchmarks.plan import Trial
from benchmarks.results import Failed, Measured, Result, failures, median
from benchmarks.works import WORKS, Setting, Sizes, Work
from tests.conftest import wait_until

ROOT = Path(__file__).resolve().parent.parent

TRIP = Metric("trip", "round trip", Unit.SECONDS, Better.LOWER)
RATE = Metric("rate", "no-op", Unit.PER_SECOND, Better.HIGHER)
WORK = Work("both", Sizes(2, 2, 1), (TRIP, RATE), lambda setting: {})


def measured(peer: str, number: int, trip_s: float, rate: float) -> Result:
    return Result(Trial(number, "both", peer), 2, Measured({"trip": trip_s, "rate": rate}), 1.0, 0)


def failed(peer: str, number: int, reason: str) -> Result:
    return Result(Trial(number, "both", peer), 2, Failed(reason, f"Traceback\n{reason}"), 1.0, 0)


# Statistics


def test_a_percentile_is_a_value_that_was_seen() -> None:
    hundred = [float(number) for number in range(100, 0, -1)]
    assert [percentile(hundred, percent) for percent in (0, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([7.0], 99) == 7.0


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("value", "baseline", "better", "expected"),
    [
        (10.0, 5.0, Better.HIGHER, 2.0),
        (10.0, 5.0, Better.LOWER, 0.5),
        (0.0, 5.0, Better.LOWER, None),
        (5.0, 0.0, Better.HIGHER, None),
    ],
)
def test_a_gain_is_above_one_where_the_value_is_better(
    value: float, baseline: float, better: Better, expected: float | None
) -> None:
    assert gain(value, baseline, better) == expected


def test_a_median_leaves_out_what_failed_and_other_peers() -> None:
    results = [
        measured("a", 0, 1.0, 10.0),
        failed("a", 1, "broke"),
        measured("a", 2, 3.0, 30.0),
        measured("a", 3, 9.0, 50.0),
        measured("b", 0, 100.0, 1000.0),
    ]
    assert median(results, "a", "trip") == 3.0
    assert median(results, "c", "trip") is None
    assert [result.trial.round for result in failures(results, "a", "both")] == [1]


def test_cpu_use_counts_only_processes_that_lived_through_it() -> None:
    assert processes.used_between({1: 1.0, 2: 5.0}, {1: 1.5, 3: 9.0}) == 0.5


# The order of trials


def test_every_trial_runs_once() -> None:
    counts = Counter(plan.trials(["a", "b", "c"], ["x", "y"], 4))
    assert len(counts) == 3 * 2 * 4
    assert set(counts.values()) == {1}


def test_peers_alternate_and_each_round_starts_with_another() -> None:
    order = [(one.round, one.peer) for one in plan.trials(["a", "b", "c"], ["x"], 3)]
    assert order == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a"), (2, "c"), (2, "a"), (2, "b")]


def test_the_peers_of_one_work_and_round_run_next_to_each_other() -> None:
    order = [(one.round, one.work) for one in plan.trials(["a", "b"], ["x", "y"], 2)]
    assert order == [(0, "x")] * 2 + [(0, "y")] * 2 + [(1, "x")] * 2 + [(1, "y")] * 2


# The table


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0002871, Unit.SECONDS, "287 µs"),
        (0.0123, Unit.SECONDS, "12.3 ms"),
        (0.4567, Unit.SECONDS, "457 ms"),
        (6.318, Unit.SECONDS, "6.32 s"),
        (1234567.8, Unit.PER_SECOND, "1 234 568/s"),
        (160.4, Unit.MIB_PER_SECOND, "160 MiB/s"),
        (0.9751, Unit.FRACTION, "0.975"),
        (0.08, Unit.CORES, "8.0 %"),
    ],
)
def test_a_value_is_written_with_its_unit(value: float, unit: Unit, text: str) -> None:
    assert table.format_value(value, unit) == text


@pytest.mark.parametrize(
    ("value", "base", "metric", "text"),
    [
        (1.0, 3.1, TRIP, "3.10x faster"),
        (31.0, 1.0, TRIP, "31x slower"),
        (31.0, 10.0, RATE, "3.10x faster"),
        (10.0, 31.0, RATE, "3.10x slower"),
        (1.001, 1.0, RATE, "equal"),
        (0.5, 1.0, Metric("ideal", "", Unit.FRACTION, Better.HIGHER), "2.00x worse"),
        (0.5, 1.0, Metric("idle", "", Unit.CORES, Better.LOWER), "2.00x better"),
        (0.5, 0.0, Metric("idle", "", Unit.CORES, Better.LOWER), ""),
    ],
)
def test_a_comparison_says_which_is_better(value: float, base: float, metric: Metric, text: str) -> None:
    assert table.format_comparison(value, base, metric) == text


def test_the_table_shows_medians_comparisons_and_failures() -> None:
    results = [
        measured("base", 0, 0.002, 1000.0),
        measured("base", 1, 0.004, 3000.0),
        measured("quick", 0, 0.001, 8000.0),
        failed("quick", 1, "it hung"),
        failed("dead", 0, "it broke"),
        failed("dead", 1, "it broke"),
    ]
    lines = table.render(results, [WORK], ["base", "quick", "dead", "absent"], "base").splitlines()
    assert lines[0].split() == ["base", "quick", "dead", "absent"]
    assert set(lines[1]) == {"-"}
    assert [cell.strip() for cell in lines[2].split("  ") if cell.strip()] == [
        "round trip", "3 ms", "1 ms", "3.00x faster (1 FAILED)", "FAILED", "-",
    ]  # fmt: skip
    assert "2 000/s" in lines[3]
    assert "4.00x faster" in lines[3]
    assert lines[4:] == [
        "",
        "FAILED: quick (both/2): it hung",
        "FAILED: dead (both/1, both/2): it broke",
    ]


def test_the_columns_of_the_table_are_aligned() -> None:
    results = [measured("base", 0, 0.002, 1.0), measured("other", 0, 0.1, 123456.0)]
    header, _, *rows = table.render(results, [WORK], ["base", "other"], "base").splitlines()
    assert {row[: header.index("other")][-1] for row in rows} == {" "}
    assert {row[header.index("other")] for row in rows} == {"1"}


def test_without_the_baseline_nothing_is_compared() -> None:
    text = table.render([measured("other", 0, 0.1, 5.0)], [WORK], ["other"], "base")
    assert "100 ms" in text or "0.1 s" in text
    assert "faster" not in text
    assert "slower" not in text


def test_processes_left_behind_are_named() -> None:
    result = Result(Trial(0, "both", "base"), 1, Measured({"trip": 1.0, "rate": 1.0}), 1.0, left_behind=3)
    assert "LEFT BEHIND: base (both/1): 3 processes" in table.render([result], [WORK], ["base"], "base")


# The JSON


def test_the_json_holds_every_round_and_the_medians() -> None:
    results = [
        measured("base", 0, 0.002, 1000.0),
        measured("other", 0, 0.001, 500.0),
        failed("other", 1, "it broke"),
    ]
    about = report.About("2026-01-01T00:00:00+00:00", {"cores": 2}, {"base": "1"}, {"rounds": 2})
    record = json.loads(report.render(results, [WORK], ["base", "other"], "base", about))
    assert record["machine"] == {"cores": 2}
    assert [figure["times_better_than_baseline"] for figure in record["figures"]] == [
        {"base": 1.0, "other": 2.0},
        {"base": 1.0, "other": 0.5},
    ]
    assert [one.get("figures") for one in record["trials"]] == [
        {"trip": 0.002, "rate": 1000.0},
        {"trip": 0.001, "rate": 500.0},
        None,
    ]
    assert record["trials"][2]["failed"] == "it broke"
    assert record["trials"][2]["output"] == "Traceback\nit broke"


# The works


class HerePeer:
    """A peer that runs each call at once, where it is submitted; it can be made to answer wrongly."""

    def __init__(self, *, takes_futures: bool, spoil: Callable[[Any], Any] = lambda result: result) -> None:
        self.takes_futures = takes_futures
        self.put = (lambda value: value) if takes_futures else None
        self.chunksizes = (1, 10)
        self.is_closed = False
        self._spoil = spoil

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        return self._spoil(fn(*args))

    def gather(self, futures: Iterable[Any]) -> list[Any]:
        return list(futures)

    def map(self, fn: Callable[..., Any], items: Iterable[Any], chunksize: int = 1) -> list[Any]:
        return [self.submit(fn, item) for item in items]

    def bash(self, command: str) -> Any:
        return subprocess.run(["bash", "-c", command], check=True).returncode

    def close(self) -> None:
        self.is_closed = True


def setting(peer: HerePeer, size: int) -> Setting:
    return Setting(lambda: peer, workers=1, size=size, import_s=0.25, mark=uuid.uuid4().hex)


@pytest.mark.parametrize("takes_futures", [True, False])
@pytest.mark.parametrize("name", sorted(WORKS))
def test_a_work_gives_exactly_the_figures_that_its_rows_name(name: str, takes_futures: bool) -> None:
    peer = HerePeer(takes_futures=takes_futures)
    figures = WORKS[name].measure(setting(peer, 1))
    assert set(figures) == {metric.key for metric in WORKS[name].metrics}
    assert all(value >= 0 for value in figures.values())
    assert peer.is_closed


def test_calls_of_a_known_duration_are_never_faster_than_ideal() -> None:
    figures = WORKS["calls1ms"].measure(setting(HerePeer(takes_futures=False), 20))
    assert 0 < figures["calls_1_ms"] <= 1.0


def _other_number(result: Any) -> Any:
    return result + 1 if isinstance(result, int | float) else result


def _other_bytes(result: Any) -> Any:
    return b"\xff" + result[1:] if isinstance(result, bytes) else result


def _other_array(result: Any) -> Any:
    return result + 1 if hasattr(result, "shape") else result


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("map", _other_number),
        ("chain", _other_number),
        ("bytes", _other_bytes),
        ("array", _other_array),
        ("shared", _other_number),
    ],
)
def test_a_pool_that_answers_wrongly_has_no_figure(name: str, spoil: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"than|lost"):
        WORKS[name].measure(setting(HerePeer(takes_futures=False, spoil=spoil), 2))


def test_no_two_rows_share_a_key() -> None:
    keys = Counter(metric.key for work in WORKS.values() for metric in work.metrics)
    assert set(keys.values()) == {1}


# Pictures


PNG = b"\x89PNG"


def test_the_picture_of_the_comparison(tmp_path: Path) -> None:
    results = [measured("base", 0, 0.002, 1000.0), measured("other", 0, 0.001, 500.0), failed("dead", 0, "it broke")]
    plot.draw_peers(results, [WORK], ["base", "other", "dead"], "base", tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(PNG)
    assert plot._gains(results, TRIP, ["base", "other", "dead"], "base") == {"other": 2.0}
    assert plot._gains(results, TRIP, ["base", "other"], "absent") == {}


# Many nodes


def test_a_limit_of_open_files_is_named_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (200, 300))
    assert scale.main(["--managers", "1", "4096"]) == 1
    assert "4096 managers need 4196 open files" in capsys.readouterr().err


@pytest.mark.live
@pytest.mark.once
def test_simulated_managers_serve_a_real_executor(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"scale.{kind}" for kind in ("json", "png")}
    command = [sys.executable, "-m", "benchmarks.scale", "--managers", "1", "20", "--tasks", "500", "--rounds", "1"]
    command += ["--idle", "0.1", "--json", str(files["json"]), "--plot", str(files["png"])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(files["json"].read_text())["figures"]
    assert [(one["managers"], one["slots"], one["tasks"]) for one in figures] == [(1, 64, 500), (20, 1280, 500)]
    assert all(one["tasks_per_s"] > 0 for one in figures)
    assert files["png"].read_bytes().startswith(PNG)


# The whole


@pytest.mark.live
@pytest.mark.once
def test_a_quick_run_measures_and_writes_the_json(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--peers", "processpool", "--work", "start", "submit"]
    done = subprocess.run([*command, "--json", str(record)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no-op submit, all in flight" in done.stdout
    assert "FAILED" not in done.stdout
    medians = {figure["key"]: figure["median"]["processpool"] for figure in json.loads(record.read_text())["figures"]}
    assert set(medians) == {"import", "start", "cold_start", "shutdown", "submit"}
    assert all(value > 0 for value in medians.values())


@pytest.mark.live
@pytest.mark.once
def test_a_trial_that_takes_too_long_is_a_failure() -> None:
    result = trial.run(Trial(0, "idle", "processpool"), trial.Limits(workers=2, timeout_s=0.5, is_quick=True))
    assert isinstance(result.outcome, Failed)
    assert result.outcome.reason == "not finished after 0.5 s"


@pytest.mark.live
@pytest.mark.once
def test_a_trial_that_breaks_says_why() -> None:
    result = trial.run(Trial(0, "submit", "processpool"), trial.Limits(workers=0, timeout_s=30.0, is_quick=True))
    assert isinstance(result.outcome, Failed)
    assert "max_workers must be greater than 0" in result.outcome.reason


@pytest.mark.live
@pytest.mark.once
def test_what_a_trial_left_behind_is_found_by_its_mark_and_killed() -> None:
    mark = uuid.uuid4().hex
    # Its parent leaves at once, so that it is no longer below this process.
    script = (
        "import subprocess; "
        "sleeper = subprocess.Popen(['sleep', '60'], start_new_session=True, "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(sleeper.pid, flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, processes.MARK_VARIABLE: mark},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [process.pid for process in processes.marked(mark)] == [int(done.stdout)]
    assert processes.end_marked(mark, grace_s=0.1) == 1
    assert processes.marked(mark) == []


@pytest.mark.live
@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_shows_what_it_has_and_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--work", "idle", "--peers", "processpool", "--rounds", "1"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        # The folder alone may be there before it is certain to be removed.
        assert wait_until(lambda: list(tmp_path.glob("hpcpool-bench-*/*")), 60)
        run.send_signal(number)
        out, err = run.communicate(timeout=60)
    assert b"interrupted: the table holds the trials so far" in err
    assert b"idle CPU use" in out
    assert list(tmp_path.glob("hpcpool-bench-*")) == []
