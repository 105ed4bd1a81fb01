"""The targets that Onward has set itself, beside what was measured: ratios to the peers and to bare SQL, and absolute limits.

`run` takes the workloads in alternating rounds: within each round of a case every subject runs once, so that a slow spell of a
shared machine hits all of them. `verdicts` judges medians, for ratios that of the rounds' ratios; where something was not run,
it says so and judges nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.results import Results
from benchmarks.subjects import CASES, SUBJECTS
from benchmarks.subjects import run as run_script

SECTION = "targets"
NAMES = {"pg": "PostgreSQL", "sqlite": "SQLite"}
PEERS = [subject.name for subject in SUBJECTS if subject.is_peer]
NOT_RUN = "not run"
_FANOUT_S = {"pg": 0.6, "sqlite": 0.4}
_LATENCY_MS = {"pg": (8, 25), "sqlite": (8, 30)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table.

    Attributes:
        what: the workload and the database.
        target: in words.
        measured: of Onward.
        beside: what it is compared with.
        ratio: of the two, in favour of Onward.
        is_met: None where it was not measured.
    """

    what: str
    target: str
    measured: str
    beside: str = ""
    ratio: str = ""
    is_met: bool | None = None


def run(bench: Bench, *, cases: tuple[str, ...] = CASES, with_peers: bool = True) -> None:
    """All workloads, round robin over the subjects within each."""
    missing = bench.peers.missing if with_peers else "they were not asked for"
    if missing:
        bench.tell(f"peers are not run: {missing}")
    for case in cases:
        for number in range(bench.rounds):
            for subject in SUBJECTS:
                size = subject.sizes.get(case)
                if size is None or number >= size.rounds or (subject.is_peer and missing):
                    continue
                if subject.database in NAMES and subject.database not in bench.kinds:
                    continue
                bench.keep(run_script(subject, case, bench.scale, bench.server, bench.folder, bench.peers))


def verdicts(results: Results) -> list[Verdict]:
    """Every target, in the order of the page."""
    return [
        *_rates(results),
        *_latencies(results),
        *_times(results),
        *_sleepers(results),
        *_idle(results),
        *_starts(results),
        *_footprint(results),
    ]


def _rates(results: Results) -> Iterator[Verdict]:
    for case, kind, other, least in (
        ("three", "pg", "dbos-pg", 100),
        ("three", "pg", "absurd", 20),
        ("three", "pg", "bare-pg", 0.5),
        ("three", "sqlite", "dbos-sqlite", 200),
        ("three", "sqlite", "bare-sqlite", 0.4),
        ("noop", "pg", "pgqueuer", 1.5),
        ("noop", "sqlite", "huey-sqlite", 8),
        ("long", "pg", "bare-pg", 0.8),
        ("long", "sqlite", "bare-sqlite", 0.8),
    ):
        unit = "steps/s" if case == "long" else "workflows/s"
        ours = results.median(SECTION, case, f"onward-{kind}", "per_s")
        theirs = results.median(SECTION, case, other, "per_s")
        ratio = _ratio(results, case, f"onward-{kind}", other)
        yield Verdict(
            f"{case}, {NAMES[kind]}",
            f"at least {least:g} times {other}",
            _shown(ours, unit),
            _shown(theirs, unit),
            "" if ratio is None else f"{ratio:.3g}",
            None if ratio is None else ratio >= least,
        )


def _ratio(results: Results, case: str, who: str, other: str) -> float | None:
    """Of two rates: the median of the rounds' ratios, since the machine's speed varies between rounds; where they did not run
    equally often, of the medians."""
    ours, theirs = (results.values(SECTION, case, subject, "per_s") for subject in (who, other))
    if not ours or not theirs:
        return None
    if len(ours) == len(theirs):
        return statistics.median(one / two for one, two in zip(ours, theirs, strict=True))
    return statistics.median(ours) / statistics.median(theirs)


def _latencies(results: Results) -> Iterator[Verdict]:
    for kind, where in NAMES.items():
        for figure, most in zip(("p50_ms", "p99_ms"), _LATENCY_MS[kind], strict=True):
            name = f"latency {figure[:3]}, {where}, two processes"
            yield from _limit(results, name, SECTION, "latency", kind, figure, most, "ms")
        for case, how in (("latency", "two processes"), ("latency-in-process", "one process")):
            yield _fastest_peer(results, case, kind, f"latency p50, {where}, {how}")


def _fastest_peer(results: Results, case: str, kind: str, name: str) -> Verdict:
    ours = results.median(SECTION, case, f"onward-{kind}", "p50_ms")
    found = {peer: results.median(SECTION, case, peer, "p50_ms") for peer in PEERS}
    times = {peer: time for peer, time in found.items() if time is not None}
    if ours is None or not times:
        return Verdict(name, "every peer slower", _shown(ours, "ms"), NOT_RUN)
    best = min(times, key=times.__getitem__)
    beside = f"{best} {_shown(times[best], 'ms')}"
    return Verdict(
        name, "every peer slower", _shown(ours, "ms"), beside, f"{times[best] / ours:.3g}", times[best] > ours
    )


def _times(results: Results) -> Iterator[Verdict]:
    for kind, most in _FANOUT_S.items():
        name = f"fanout of 1,000 children, {NAMES[kind]}"
        yield from _limit(results, name, SECTION, "fanout", kind, "seconds", most, "s")
        base = results.median(SECTION, "fanout", f"onward-{kind}", "per_s")
        for case in ("fanout-10,000", "fanout-100,000"):
            rate = results.median(SECTION, case, f"onward-{kind}", "per_s")
            ratio = None if rate is None or base is None else rate / base
            yield Verdict(
                f"{case.replace('-', ' of ')} children, {NAMES[kind]}",
                "linear: at least 0.8 times the rate of 1,000",
                _shown(rate, "children/s"),
                _shown(base, "children/s"),
                "" if ratio is None else f"{ratio:.3g}",
                None if ratio is None else ratio >= 0.8,
            )
    for kind, where in NAMES.items():
        name = f"resume after 5,000 steps, {where}"
        yield from _limit(results, name, SECTION, "resume", kind, "seconds", 0.5, "s", "absurd")


def _sleepers(results: Results) -> Iterator[Verdict]:
    for kind, where in NAMES.items():
        name = f"10,000 sleepers, {where}"
        case = "sleepers-spread"
        yield from _limit(results, f"{name}, over 5 s: p99 late", SECTION, case, kind, "late_p99_s", 0.15, "s")
        case = "sleepers"
        yield from _limit(
            results, f"{name}, at one instant: last woken", SECTION, case, kind, "late_max_s", 1.5, "s", "absurd"
        )
        for case, how in (("sleepers-spread", "over 5 s"), ("sleepers", "at one instant")):
            label = f"{name}, {how}: most memory above idle"
            yield from _limit(results, label, SECTION, case, kind, "above_idle_mb", 40, "MB")


def _idle(results: Results) -> Iterator[Verdict]:
    for queues in (1, 50):
        label = f"idle worker of {queues} {'queue' if queues == 1 else 'queues'}, PostgreSQL"
        yield from _limit(results, label, "idle", f"{queues} queues", "pg", "statements_per_s", 3, "statements/s")
    yield from _limit(results, "idle worker, SQLite", "idle", "1 queues", "sqlite", "cpu_percent", 0.5, "% of a core")


def _starts(results: Results) -> Iterator[Verdict]:
    for kind, where in NAMES.items():
        for case, least in (("start_many", 50_000), ("concurrent", 3_000)):
            rate = results.median("starts", case, f"onward-{kind}", "per_s")
            what = "start_many" if case == "start_many" else "concurrent start calls"
            yield Verdict(
                f"{what}, {where}",
                f"at least {least:,}/s",
                _shown(rate, "workflows/s"),
                is_met=None if rate is None else rate >= least,
            )


def _footprint(results: Results) -> Iterator[Verdict]:
    parts = [results.median("footprint", case, "onward-pg", "wal_bytes") for case in ("three, run", "three, start")]
    bare = results.median("footprint", "three, run", "bare-pg", "wal_bytes")
    for words, shown in (("its run", parts[:1]), ("its start and its run", parts)):
        found = [part for part in shown if part is not None]
        total = sum(found) if len(found) == len(shown) else None
        yield Verdict(
            f"write-ahead log of a three-step workflow, {words}, PostgreSQL",
            "at most 2,200 B",
            _shown(total, "B"),
            f"bare-pg, its run: {_shown(bare, 'B')}" if words == "its run" else "",
            is_met=None if total is None else total <= 2200,
        )


def _limit(
    results: Results,
    name: str,
    section: str,
    case: str,
    kind: str,
    figure: str,
    most: float,
    unit: str,
    other: str | None = None,
) -> Iterator[Verdict]:
    ours = results.median(section, case, f"onward-{kind}", figure)
    theirs = None if other is None else results.median(section, case, other, figure)
    beside = "" if other is None else f"{other} {_shown(theirs, unit)}"
    ratio = "" if ours is None or theirs is None or not ours else f"{theirs / ours:.3g}"
    yield Verdict(
        name, f"at most {most:,g} {unit}", _shown(ours, unit), beside, ratio, None if ours is None else ours <= most
    )


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return NOT_RUN
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def lines(results: Results) -> list[str]:
    """The table of the targets."""
    words = {True: "met", False: "**not met**", None: ""}
    rows = [
        f"| {v.what} | {v.target} | {v.measured} | {v.beside} | {v.ratio} | {words[v.is_met]} |"
        for v in verdicts(results)
    ]
    return ["| workload | target | Onward | beside | ratio | |", "|---|---|---:|---:|---:|---|", *rows]
