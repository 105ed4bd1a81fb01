"""Which of the four systems `onward demo` plays, what it refuses, and how it runs those that are scripts."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg import sql

from onward.cli import demo as demo_command
from onward.cli._demo.jobs import JOBS, Job, play_script
from onward.cli.settings import Failure
from tests.examples.support import EXAMPLES
from tests.postgres.server import connection, server_url


def lacking(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Let these packages look as if they were not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else object())


def test_without_names_all_four_play_and_with_names_those_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    assert demo_command._chosen(()) == ["pipeline", "welcome", "webhook", "ai"]
    assert demo_command._chosen(("ai", "welcome", "ai")) == ["welcome", "ai"]


def test_without_names_those_that_lack_a_package_are_left_out_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking(monkeypatch, "stripe", "aiosmtpd")
    assert demo_command._chosen(()) == ["pipeline"]
    assert capsys.readouterr().err == (
        'left out, for want of packages: welcome, webhook and ai (pip install "onward[demo]" for all)\n'
    )


def test_one_that_is_named_and_lacks_a_package_is_refused_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, "stripe", "httpx")
    with pytest.raises(Failure) as refused:
        demo_command._chosen(("pipeline", "webhook"))
    assert refused.value.message == 'webhook needs httpx and stripe: pip install "onward[demo]"'
    assert refused.value.exit_code == 2


def test_a_script_takes_no_sqlite_file_of_the_users() -> None:
    with pytest.raises(Failure, match="makes an SQLite file of its own; name the folder for it"):
        demo_command._url("sqlite:///mine.db", ["welcome"])
    assert demo_command._url("sqlite:///mine.db", ["pipeline", "welcome"]) == "sqlite:///mine.db"


def test_each_of_them_is_there_and_the_scripts_are_the_examples() -> None:
    assert [job.source.name for job in JOBS.values() if job.source.parent == EXAMPLES] == [
        "welcome_sequence.py", "webhook.py", "ai_pipeline.py",
    ]  # fmt: skip
    assert all(job.source.is_file() for job in JOBS.values())


REPORT = """
import json, os, sys, tempfile
import neighbour
names = ("ONWARD_DATABASE_URL", "KEEP")
print(json.dumps([neighbour.WORD, __name__, sys.argv, tempfile.gettempdir(), *(os.environ[name] for name in names)]), flush=True)
sys.exit(3)
"""


def test_a_script_runs_as_it_would_by_itself_with_its_files_below_the_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "neighbour.py").write_text("WORD = 'found'\n")
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    code = play_script(Job(script, "a report"), url="postgresql://there", folder=tmp_path, keep=True)
    assert code == 3
    found = json.loads(capfd.readouterr().out)
    assert found == ["found", "__main__", [str(script)], str(tmp_path), "postgresql://there", "1"]


def test_a_user_that_may_not_create_schemas_is_told_so_before_anything_plays(tmp_path: Path) -> None:
    role = f"guest_{secrets.token_hex(4)}"
    with connection() as database:
        database.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        try:
            url = server_url().replace("://postgres@", f"://{role}@")
            run = subprocess.run(
                [sys.executable, "-m", "onward", "demo", "--url", url, "--dir", str(tmp_path)],
                env={**os.environ, "ONWARD_DATABASE_URL": ""}, capture_output=True, text=True, timeout=100, check=False,
            )  # fmt: skip
        finally:
            database.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
    assert run.returncode == 5, run.stdout + run.stderr
    assert f"GRANT CREATE ON DATABASE postgres TO {role}" in run.stderr.splitlines()[-1]
    assert run.stdout == ""
    assert list(tmp_path.iterdir()) == []
