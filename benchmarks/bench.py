"""What every section of a benchmark run gets: where the databases are, how large and how often, and where results go."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.databases import Database, on_server
from benchmarks.results import Results, Sample
from benchmarks.subjects import Peers

KINDS = ("pg", "sqlite")
SHOWN = ("per_s", "seconds", "p50_ms", "late_p99_s")
"""The figures that are worth a line while it runs: the first of these, else all."""


@dataclass(slots=True)
class Bench:
    """One run.

    Attributes:
        results: where samples go.
        server: the URL of a PostgreSQL server, without a database.
        folder: for SQLite files; on the disk to be measured.
        peers: where they are.
        scale: 1.0 is the full size.
        rounds: of each case.
        minutes: of the steady run.
        is_huge: whether 10,000,000 finished rows are measured, too.
        kinds: pg, sqlite.
        tell: a line for who waits.
    """

    results: Results
    server: str
    folder: Path
    peers: Peers
    scale: float = 1.0
    rounds: int = 5
    minutes: float = 10.0
    is_huge: bool = False
    kinds: tuple[str, ...] = KINDS
    tell: Callable[[str], None] = field(default=print)

    def count(self, full: int, least: int = 20) -> int:
        """A size at this scale."""
        return max(least, round(full * self.scale))

    def database(self, kind: str, name: str = "bench_onward") -> Database:
        """A database to measure on; whoever measures makes it fresh."""
        return Database(on_server(self.server, name) if kind == "pg" else f"sqlite:///{self.folder / name}.db")

    def measure(
        self,
        section: str,
        case: str,
        kind: str,
        size: int,
        work: Callable[[Database], Mapping[str, float]],
        who: str = "onward",
    ) -> None:
        """Run one case once and keep what it gave; a failure is kept and told, and the run goes on."""
        subject = f"{who}-{kind}"
        try:
            sample = Sample(section, case, subject, dict(work(self.database(kind))), size)
        except Exception as error:
            traceback.print_exc()
            sample = Sample(section, case, subject, {}, size, f"{type(error).__name__}: {error}")
        self.keep(sample)

    def keep(self, sample: Sample) -> None:
        """Keep a sample, and tell it."""
        self.results.add(sample)
        shown = {name: sample.figures[name] for name in SHOWN if name in sample.figures} or dict(sample.figures)
        text = (
            ", ".join(f"{name} {value:,.4g}" for name, value in shown.items())
            if not sample.error
            else sample.error[-300:]
        )
        self.tell(f"{sample.section:10} {sample.case:34} {sample.subject:15} {sample.size:>9,}  {text}")
