"""The benchmarks at tiny sizes on both databases, so that they cannot rot. How fast anything is, is none of these tests' business."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    claims,
    flows,
    footprint,
    idle,
    limit,
    meters,
    onward_peer,
    page,
    scaling,
    starts,
    steady,
    workloads,
)
from benchmarks.bench import KINDS, Bench
from benchmarks.databases import Database, on_server
from benchmarks.relay import Relay
from benchmarks.results import Results
from benchmarks.subjects import PEER_FOLDER, PEER_PYTHON, Peers
from tests.postgres.server import connection, server_url

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are measured by what /proc says of them")

ROOT = Path(__file__).resolve().parents[2]
SIZE = 20


@pytest.fixture(autouse=True)
def _without_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures need systems at rest; these tests do not."""
    monkeypatch.setattr(workloads, "IDLE_S", 0.0)
    monkeypatch.setattr(meters, "REPORT_S", 0.0)


@pytest.fixture(scope="module", autouse=True)
def _without_leftovers() -> Iterator[None]:
    """The databases are gone when these tests are, also on a server that stays."""
    yield
    with connection() as conn:
        for name in ("bench_tests", "bench_onward"):
            conn.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "pg":
        return Database(on_server(server_url(), "bench_tests"))
    return Database(f"sqlite:///{tmp_path / 'x.db'}")


def small(tmp_path: Path, kind: str) -> Bench:
    """A bench of the least size on one database, which tells nobody."""
    peers = Peers(PEER_FOLDER, PEER_PYTHON)
    server = server_url() if kind == "pg" else ""
    return Bench(
        Results(None), server, tmp_path, peers, scale=1e-9, rounds=1, minutes=0.005, kinds=(kind,), tell=lambda _: None
    )


@pytest.mark.parametrize("workload", [name for name in onward_peer.SIZES if name not in ("long", "fanout")])
def test_a_workload_is_measured_and_its_rows_are_checked(workload: str, database: Database) -> None:
    found = onward_peer.measure(workload, database, SIZE, 10, {"spread": "0.1"})
    assert all(found[name] > 0 for name in ("seconds", "p50_ms", "late_p99_s", "worker_cpu_s") if name in found)
    expected = {
        "noop": {"per_s", "worker_cpu_s", "worker_rss_mb", "enqueue_per_s", "checked_rows"},
        "three": {"per_s", "worker_cpu_s", "worker_rss_mb", "enqueue_per_s", "checked_rows", "checked_steps"},
        "latency": {"p50_ms", "p99_ms", "max_ms"},
        "resume": {"build_s", "seconds", "from_spawn_s", "replay_s", "checked_steps"},
        "sleepers": {"late_p50_s", "late_p99_s", "late_max_s", "worker_rss_mb", "above_idle_mb", "enqueue_per_s"},
    }
    assert expected[workload] <= set(found)
    if database.is_postgres and workload in ("noop", "three"):
        assert {"pg_xacts", "pg_wal_bytes", "pg_wal_fsyncs"} <= set(found)


def test_workloads_in_one_process_are_measured(database: Database) -> None:
    assert workloads.in_one(database, flows.long, SIZE)["checked_steps"] == SIZE
    assert workloads.in_one(database, flows.parent, SIZE)["per_s"] > 0
    assert workloads.latency(database, SIZE, is_in_one_process=True)["p50_ms"] > 0


@pytest.mark.parametrize(("script", "peer"), [("onward_peer.py", "onward-sqlite"), ("limit.py", "bare-sqlite")])
def test_a_script_has_the_command_line_of_the_peers(script: str, peer: str, tmp_path: Path) -> None:
    argv = [sys.executable, str(ROOT / "benchmarks" / script), "--workload", "three", "--n", str(SIZE)]
    argv += ["--dsn", f"sqlite:///{tmp_path / 'x.db'}"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert (found["peer"], found["workload"], found["n"], found["checked_steps"]) == (peer, "three", SIZE, 3 * SIZE)


def test_the_bare_loop_leaves_the_rows_that_onward_leaves(database: Database) -> None:
    journal = database.journal
    shape = (
        f"SELECT status, worker, epoch, step, (SELECT count(*) FROM {journal} AS j WHERE j.workflow_id = w.id),"
        f" (SELECT max(key) FROM {journal} AS j WHERE j.workflow_id = w.id),"
        f" (SELECT count(*) FROM {journal} AS j WHERE j.workflow_id = w.id AND kind = 'step' AND tries = 1 AND error IS NULL"
        "   AND digest IS NOT NULL AND arguments IS NOT NULL AND result IS NOT NULL AND started_at IS NOT NULL),"
        " next_run_at IS NULL, started_at IS NULL, finished_at IS NULL, version IS NULL, code_version IS NULL, result IS NULL"
        f" FROM {database.workflows} AS w"
    )
    assert limit.drain(database, 3, 3)["per_s"] > 0
    bare = database.rows(shape)
    assert workloads.drain_numbers(database, flows.three, 3, 3, meters=False)["per_s"] > 0
    ours = database.rows(shape)
    assert len(bare) == len(ours) == 3
    assert {row[5:] for row in bare} == {row[5:] for row in ours}
    assert {row[:3] for row in bare} == {row[:3] for row in ours}
    assert limit.drain(database, 3, 0)["checked_steps"] == 0
    assert limit.single_commits(database, 3)["per_s"] > 0


def test_claims_are_measured_beside_other_rows(database: Database) -> None:
    told: list[str] = []
    found = claims.measure_all(database.url, 200, 5, told.append)
    assert {name: len(took) for name, took in found.items()} == dict.fromkeys(found, 5)
    assert len(found) == len(told) - 1 == (5 if database.is_postgres else 4)


SECTIONS = [(section, kind) for section in (starts, footprint, idle, steady) for kind in KINDS] + [(scaling, "sqlite")]


@pytest.mark.parametrize(("section", "kind"), SECTIONS, ids=[f"{section.SECTION}-{kind}" for section, kind in SECTIONS])
def test_a_section_is_measured_and_shown(
    section: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "PROCESSES", (2,))
    monkeypatch.setattr(scaling, "SLOTS", (10,))
    monkeypatch.setattr(scaling, "PAYLOADS", (100,))
    monkeypatch.setattr(scaling, "FINISHED", (100,))
    monkeypatch.setattr(idle, "QUEUES", (2,))
    monkeypatch.setattr(footprint, "FLOWS", {"three": footprint.FLOWS["three"]})
    bench = small(tmp_path, kind)
    section.run(bench)
    assert [sample.error for sample in bench.results.samples if sample.error] == []
    cases = bench.results.cases(section.SECTION)
    assert len(cases) >= 1
    bench.results.setup = {"date": "today"}
    page.write(bench.results, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "\n".join(section.lines(bench.results)) in text
    assert "{" not in text.replace("{id}", "")


def test_the_relay_counts_round_trips() -> None:
    with Relay(on_server(server_url(), "postgres")) as relay, Database(relay.url).connected() as session:
        before = relay.round_trips
        for _ in range(3):
            session.execute("SELECT 1")
        assert relay.round_trips == before + 3
