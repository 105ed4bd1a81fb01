"""The benchmarks at tiny sizes, so that they cannot rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import claims, measures
from benchmarks.databases import Database

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("workload", ["noop", "three", "latency", "long", "fanout", "resume"])
def test_the_peer_script_measures_a_workload_and_checks_its_rows(workload: str, tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "onward_peer.py"
    size = "20"
    argv = [sys.executable, str(script), "--workload", workload, "--n", size, "--dsn", f"sqlite:///{tmp_path / 'x.db'}"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert (found["peer"], found["workload"], found["n"]) == ("onward-sqlite", workload, 20)
    assert found["seconds"] > 0


def test_the_bare_loop_leaves_the_rows_that_onward_leaves(tmp_path: Path) -> None:
    shape = (
        "SELECT status, result, worker, epoch, step, (SELECT count(*) FROM onward_journal AS j WHERE j.workflow_id = w.id), "
        "(SELECT max(key) FROM onward_journal AS j WHERE j.workflow_id = w.id) FROM onward_workflows AS w"
    )
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    assert measures.bare_three(database, 3) > 0
    bare = database.rows(shape)
    assert measures.drain_three(database, 3)["per_s"] > 0
    ours = database.rows(shape)
    assert len(bare) == len(ours) == 3
    assert {row[0] for row in (*bare, *ours)} == {"completed"}
    assert {row[5:] for row in bare} == {row[5:] for row in ours} == {(3, "add#3")}


def test_claims_are_measured_beside_other_rows(tmp_path: Path) -> None:
    told: list[str] = []
    found = claims.run(f"sqlite:///{tmp_path / 'x.db'}", 200, 5, told.append)
    assert {name: len(took) for name, took in found.items()} == dict.fromkeys(found, 5)
    assert len(found) == len(told) - 1 == 4
