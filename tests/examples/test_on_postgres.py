"""The examples on PostgreSQL, as their reader would run them: the same reports, and no schema is left of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from onward import Client
from tests.examples.support import EXAMPLES, environment, require_demo
from tests.postgres.server import connection, server_url, url_with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def _run(example: str, folder: Path, **variables: str) -> str:
    require_demo()
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / example)],
        cwd=folder, env={**environment(folder, server_url()), **variables},
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert os.listdir(folder) == [], "nothing is in a file"
    return run.stdout


def _schemas() -> set[str]:
    with connection() as database:
        return {name for (name,) in database.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'onward%'")}


def test_the_welcome_sequence_sends_each_mail_once_though_its_worker_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("aiosmtpd")
    output = _run("welcome_sequence.py", tmp_path)
    received = re.findall(r"received '(.+?)', Message-ID <(.+?)@example.com>", output)
    assert received == [("welcome", "welcome-ada/send_email"), ("follow-up", "welcome-ada/send_email#2")]
    assert "is killed with SIGKILL; the workflow is sleeping until" in output
    dropped = re.search(r"Completed: 2 mails\. Its schema (onward_demo_welcome_\w+) is dropped now", output)
    assert dropped is not None, output
    assert dropped[1] not in _schemas()


def test_three_deliveries_and_a_kill_are_one_provision_one_mail_and_three_rows_in_the_same_schema(
    tmp_path: Path,
) -> None:
    lines = _run("webhook.py", tmp_path, KEEP="1").splitlines()
    assert lines[5:] == [
        "  3 deliveries   1 event, 1 workflow",
        "  access         1 provision  (calls: 2, one Idempotency-Key)",
        "  mail           1 confirmation  (calls: 1)",
        "  rows           1 order, 1 licence, 1 ledger entry  (all in try 2)",
        "Ok: one provision, one mail, three rows.",
    ]
    kept = re.fullmatch(
        r"Completed\. Look at it: onward show evt_1 --url 'postgresql://…\?schema=(onward_demo_shop_\w+)'", lines[4]
    )
    assert kept is not None
    with psycopg.connect(server_url(), autocommit=True) as database, Client(url_with(schema=kept[1])) as client:
        try:
            assert client.handle("evt_1").status() == "completed"
            assert database.execute(f"SELECT * FROM {kept[1]}.orders").fetchall() == [("cs_1", "ada@example.com")]
            assert database.execute(f"SELECT * FROM {kept[1]}.ledger").fetchall() == [("cs_1", 4900)]
        finally:
            database.execute(f"DROP SCHEMA {kept[1]} CASCADE")


def test_the_ai_pipeline_asks_for_no_recorded_answer_again(tmp_path: Path) -> None:
    output = _run("ai_pipeline.py", tmp_path)
    assert re.findall(r"^  (\w+): (\d) \((.*)\)$", output, re.MULTILINE) == [
        ("themes", "2", "overloaded, answered"),
        ("risks", "2", "dropped, answered"),
        ("advice", "2", "cut off, answered"),
    ]
    assert output.endswith("Ok: what was answered was kept, and never asked for again.\n")
    schema = re.search(r"schema=(onward_demo_analysis_\w+)", output)
    assert schema is not None
    assert schema[1] not in _schemas()
