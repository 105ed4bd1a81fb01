"""Writes docs/benchmarks.md from the results of a run, or of several parts of one; the prose is in page.md."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import claims, footprint, idle, scaling, starts, steady, targets
from benchmarks.bench import Bench
from benchmarks.databases import Database, on_server
from benchmarks.results import Results
from benchmarks.subjects import CASES, SUBJECTS

TEMPLATE = Path(__file__).with_name("page.md")
FIGURES = {
    "enqueue_per_s": "enqueued/s",
    "per_s": "per s",
    "seconds": "s",
    "replay_s": "since the worker was up, s",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "late_p50_s": "late p50, s",
    "late_p99_s": "p99, s",
    "late_max_s": "last, s",
    "worker_cpu_s": "worker CPU, s",
    "pg_cpu_s": "PostgreSQL CPU, s",
    "server_cpu_s": "server CPU, s",
    "pg_xacts": "transactions",
    "pg_wal_fsyncs": "WAL fsyncs",
    "worker_rss_mb": "worker memory, MB",
}
ABOUT = {
    "three": "Workflows of three steps in sequence, each recorded; they wait in the queue and are drained by one worker process.",
    "noop": "The same without a step, which is what plain job queues do.",
    "latency": "Start to result of one-step workflows, one after the other; client and worker in two processes.",
    "latency-in-process": "The same, client and worker in one process.",
    "long": "One workflow of 2,000 steps in sequence (Temporal: 300). The bare loop commits one journal row at a time.",
    "fanout": "One workflow that starts 1,000 children of one step and awaits them all.",
    "resume": "A workflow with 5,000 recorded steps whose worker is gone: from the start of a new process to the first new step.",
    "sleepers": "10,000 sleeping workflows. Onward's are all due at one instant; the peers' sleep for 5 s each.",
    "sleepers-spread": "The same, due evenly over 5 s.",
}
SECTIONS: tuple[tuple[str, Any], ...] = (
    ("Scaling", scaling),
    ("Starts", starts),
    ("Footprint", footprint),
    ("Idle", idle),
    ("Claims", claims),
    ("Steady load", steady),
)


def describe(server: str, bench: Bench) -> dict[str, Any]:
    """What a page says of where and how it was measured."""
    names = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
    values = ", ".join(f"current_setting('{name}')" for name in names)
    version, *settings = Database(on_server(server, "postgres")).row(
        f"SELECT current_setting('server_version'), {values}"
    )
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "postgres": version,
        "settings": ", ".join(f"{name}={value}" for name, value in zip(names, settings, strict=True)),
        "peers": bench.peers.versions(),
        "scale": bench.scale,
        "rounds": bench.rounds,
    }


def write(results: Results, path: Path) -> None:
    """The whole page."""
    parts = {
        "setup": _setup(results.setup),
        "speed": _speed(results),
        "targets": "\n".join(targets.lines(results)),
        "workloads": "\n\n".join(_workloads(results)),
        "sections": "\n\n".join(_sections(results)),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def _setup(setup: dict[str, Any]) -> str:
    known = {
        "date": "",
        "cores": "",
        "machine": "",
        "python": "",
        "sqlite": "",
        "postgres": "",
        "settings": "",
        **setup,
    }
    peers = ", ".join(f"{name} {version}" for name, version in setup.get("peers", {}).items()) or "not run"
    text = "{date}, {cores} cores, {machine}, CPython {python}, SQLite {sqlite}, PostgreSQL {postgres} ({settings})."
    scale = setup.get("scale", 1.0)
    sizes = "" if scale == 1 else f" Everything is {scale:g} times its full size: too small to judge by."
    return f"{text.format(**known)} Peers: {peers}.{sizes}"


def _speed(results: Results) -> str:
    """How the machine's own speed varied between the runs."""
    found = sorted(ms for s in results.of(targets.SECTION) if (ms := s.figures.get("machine_ms")) is not None)
    if not found:
        return ""
    low, mid, high = (found[min(len(found) - 1, round(part * (len(found) - 1)))] for part in (0.1, 0.5, 0.9))
    return (
        f"A fixed loop of Python, run before each of {len(found)} runs, took {mid:.0f} ms in the median, under {low:.0f} ms in a "
        f"tenth of them and over {high:.0f} ms in another."
    )


def _workloads(results: Results) -> Iterator[str]:
    for case in CASES:
        if results.of(targets.SECTION, case):
            yield f"### {case}"
            if case in ABOUT:
                yield ABOUT[case]
            yield "\n".join(_workload(results, case))
    failed = [sample for sample in results.samples if sample.error]
    if failed:
        yield "### Failed runs"
        told = [
            f"- {s.subject}, {s.section}, {s.case}: `{' '.join(s.error.replace('`', ' ').split())[-160:]}`"
            for s in failed
        ]
        yield "\n".join(told)


def _sections(results: Results) -> Iterator[str]:
    for title, section in SECTIONS:
        if results.of(section.SECTION):
            yield f"## {title}"
            yield "\n".join(section.lines(results))


def _workload(results: Results, case: str) -> list[str]:
    subjects = results.subjects(targets.SECTION, case)
    names = [name for name in FIGURES if any(results.values(targets.SECTION, case, who, name) for who in subjects)]
    lines = [
        f"| | size | rounds | {' | '.join(FIGURES[name] for name in names)} | least … most |",
        "|---|---:|---:|" + "---:|" * (len(names) + 1),
    ]
    order = [subject.name for subject in SUBJECTS]
    main = next((name for name in ("per_s", "p50_ms", "seconds") if name in names), names[0])
    for who in sorted(subjects, key=order.index):
        samples = results.of(targets.SECTION, case, who)
        medians = [results.median(targets.SECTION, case, who, name) for name in names]
        cells = ["" if value is None else _number(value) for value in medians]
        values = results.values(targets.SECTION, case, who, main)
        span = f"{_number(min(values))} … {_number(max(values))}" if len(values) > 1 else ""
        lines.append(f"| {who} | {samples[-1].size:,} | {len(samples)} | {' | '.join(cells)} | {span} |")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
