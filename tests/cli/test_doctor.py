"""`onward doctor`: what it prints, what it exits with, and what it says of real worker processes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest

from onward import __version__
from onward._store.diagnosis import Finding
from onward.cli.doctor import lines
from tests.cli.conftest import Cli
from tests.cli.processes import Start, until, wait_for_file


def checks_of(cli: Cli, *args: str) -> dict[str, dict[str, Any]]:
    """The findings of `doctor --json`, by check."""
    shown = json.loads(cli("doctor", "--json", *args).stdout)
    return {finding["check"]: finding for finding in shown["findings"]}


def make_due_long_ago(path: Path) -> None:
    """As if the workers had been away for an hour."""
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE onward_workflows SET next_run_at = next_run_at - 3600000000 WHERE status = 'pending'")


def test_a_fine_database_gives_a_line_a_check_and_0(cli: Cli, flows: str, tmp_path: Path) -> None:
    cli("run", f"{flows}:hello", '["Ann"]')
    result = cli("doctor")
    assert result.exit_code == 0
    assert result.stderr == f"database: {tmp_path / 'onward.db'}\n"
    text = result.stdout
    assert text.startswith(f"ok    software     onward {__version__} on ")
    for check in (
        "sqlite",
        "file-system",
        "permissions",
        "schema",
        "durability",
        "integrity",
        "size",
        "disk",
        "workers",
    ):
        assert f"ok    {check} " in text or f"warn  {check} " in text, check
    assert "1 completed" in text
    assert "FAIL" not in text


def test_the_database_is_left_exactly_as_it_is(cli: Cli, lived_in: str, tmp_path: Path) -> None:
    before = (tmp_path / "lived-in.db").read_bytes()
    cli("doctor", "--url", lived_in, "--full")
    assert (tmp_path / "lived-in.db").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["lived-in.db"]


def test_workflows_that_nobody_runs_are_a_warning_and_after_a_minute_a_failure(
    cli: Cli, lived_in: str, tmp_path: Path
) -> None:
    fresh = cli("doctor", "--url", lived_in)
    assert fresh.exit_code == 0
    assert "warn  workers " in fresh.stdout
    assert cli("doctor", "--url", lived_in, "--strict").exit_code == 1
    make_due_long_ago(tmp_path / "lived-in.db")
    late = cli("doctor", "--url", lived_in)
    assert late.exit_code == 1
    assert "FAIL  workers " in late.stdout
    assert "-> start one: onward worker MODULE" in late.stdout
    assert "1 failed" in late.stdout.splitlines()[-1]


def test_json_is_one_object_and_nothing_else(cli: Cli, lived_in: str) -> None:
    result = cli("doctor", "--url", lived_in, "--json")
    shown = json.loads(result.stdout)
    assert result.stderr == ""
    assert (shown["database"], shown["level"]) == (lived_in, "warn")
    assert {frozenset(finding) for finding in shown["findings"]} == {
        frozenset({"check", "level", "text", "cure", "data", "is_unusable"})
    }
    assert checks_of(cli, "--url", lived_in)["workflows"]["data"]["completed"] == 2


def test_a_database_that_cannot_be_used_ends_with_5_after_the_findings(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "onward.db").write_text("this is no database, " * 100)
    result = cli("doctor")
    assert result.exit_code == 5
    assert "FAIL  integrity " in result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: ")
    shown = cli("doctor", "--json")
    assert shown.exit_code == 5
    assert json.loads(shown.stdout)["level"] == "fail"


def test_only_full_checks_everything(cli: Cli, lived_in: str) -> None:
    assert checks_of(cli, "--url", lived_in)["integrity"]["data"]["method"] == "quick_check"
    assert checks_of(cli, "--url", lived_in, "--full")["integrity"]["data"]["method"] == "integrity_check"


def test_cures_stand_below_what_is_not_well_only() -> None:
    found = [
        Finding(check="a", level="ok", text="fine", cure="not needed"),
        Finding(check="longer", level="warn", text="two\nlines\x1b[31m", cure="do this"),
    ]
    assert [click.unstyle(line) for line in lines(found)] == [
        "ok    a       fine",
        r"warn  longer  two lines\x1b[31m",
        "              -> do this",
        "",
        "0 failed, 1 to look at, 1 well",
    ]
    assert list(lines(found[:1]))[-1] == "all is well (1 checks)"


def test_a_worker_that_was_killed_is_found_dead_with_what_it_holds(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    cli("start", f"{flows}:taking", "[60]", "--id", "t")
    worker = start_worker(flows, "--name", "victim")
    wait_for_file(tmp_path / "began", worker)
    before = checks_of(cli)
    assert before["leases"]["text"] == "1 running workflow, each held by a living worker"
    assert before["workers"]["data"]["alive"][0]["held"] == 1
    assert before["sqlite"]["data"]["worker_processes"] == 1
    worker.process.kill()
    worker.wait()
    result = cli("doctor")
    assert result.exit_code == 1
    assert "1 workflow is held by dead workers (victim)" in result.stdout
    assert checks_of(cli)["sqlite"]["data"]["worker_processes"] == 0


def test_a_worker_that_stands_still_is_told_from_a_dead_one(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    cli("start", f"{flows}:taking", "[60]", "--id", "t")
    worker = start_worker(flows, "--lease", "2s", "--name", "frozen")
    wait_for_file(tmp_path / "began", worker)
    os.kill(worker.process.pid, signal.SIGSTOP)
    try:
        silent = until(lambda: checks_of(cli)["leases"]["data"]["silent"], "the lease runs out")
        assert len(silent) == 1
        result = cli("doctor")
    finally:
        os.kill(worker.process.pid, signal.SIGCONT)
    assert result.exit_code == 1
    assert f"but its process (pid {worker.process.pid} on " in result.stdout


def test_a_type_that_no_running_worker_has_is_named(cli: Cli, flows: str, tmp_path: Path, start_worker: Start) -> None:
    cli("start", f"{flows}:hello", '["x"]', "--id", "waits-for-its-module")
    (tmp_path / "onward_other_flows.py").write_text(
        "from onward import workflow\n@workflow\nasync def other() -> None: ...\n"
    )
    start_worker("onward_other_flows").until("works on")
    make_due_long_ago(tmp_path / "onward.db")
    found = checks_of(cli)["unclaimable"]
    assert found["level"] == "fail"
    assert found["data"] == {"type": "hello", "queue": "default", "count": 1, "due": 1}
    assert cli("doctor").exit_code == 1


@pytest.mark.parametrize("url", ["memory://", "memory://shared"])
def test_a_database_in_memory_has_nothing_wrong(cli: Cli, url: str) -> None:
    result = cli("doctor", "--url", url)
    assert result.exit_code == 0
    assert "none yet" in result.stdout
