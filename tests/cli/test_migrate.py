"""`onward migrate`: what it makes, prints and removes, and what it asks before it does."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from onward.cli.group import onward
from tests.cli.conftest import Cli
from tests.cli.processes import Start


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as conn:
        return {
            name
            for (name,) in conn.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'sqlite_*'"
            )
        }


@pytest.fixture
def path(cli: Cli, flows: str, tmp_path: Path) -> Path:
    """A database with one workflow, and a table of the application's."""
    cli("start", f"{flows}:hello", '["x"]')
    with closing(sqlite3.connect(tmp_path / "onward.db")) as conn, conn:
        conn.execute("CREATE TABLE mine (x)")
    return tmp_path / "onward.db"


def test_it_makes_the_schema_once(cli: Cli, tmp_path: Path) -> None:
    assert cli("migrate").stdout == "the schema was brought up to date\n"
    assert cli("migrate").stdout == "the schema is up to date\n"
    assert cli("migrate", "--check").exit_code == 0
    assert "onward_workflows" in tables(tmp_path / "onward.db")


def test_the_printed_schema_is_the_one_it_makes_and_nothing_is_opened(cli: Cli, tmp_path: Path) -> None:
    result = cli("migrate", "--sql")
    assert (result.exit_code, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    with closing(sqlite3.connect(tmp_path / "onward.db")) as conn:
        conn.executescript(result.stdout)
    assert cli("migrate", "--check").exit_code == 0


def test_what_has_no_schema_has_none_to_print(cli: Cli) -> None:
    assert cli("migrate", "--sql", "--url", "memory://").exit_code == 2


def test_drop_removes_what_is_onwards_alone(cli: Cli, path: Path) -> None:
    result = cli("migrate", "--drop", "--yes")
    assert result.exit_code == 0
    assert "onward_workflows" in result.stdout
    assert result.stderr == f"database: {path}\n"
    assert tables(path) == {"mine"}
    again = cli("migrate", "--drop", "--yes")
    assert (again.exit_code, again.stdout) == (0, "there is nothing of Onward in it\n")


def test_drop_says_when_nothing_is_left(cli: Cli, flows: str, tmp_path: Path) -> None:
    cli("start", f"{flows}:hello", '["x"]')
    assert "nothing else is in" in cli("migrate", "--drop", "--yes").stderr
    assert [file.name for file in tmp_path.iterdir()] == ["onward.db"]


def test_drop_asks_for_the_name_of_the_file_and_tells_what_would_be_lost(path: Path) -> None:
    wrong = CliRunner().invoke(onward, ["migrate", "--drop"], input="yes\n")
    assert wrong.exit_code == 2
    assert "all 1 workflow in them, 1 of them unfinished" in wrong.stderr
    assert "error: nothing was removed" in wrong.stderr
    assert "onward_workflows" in tables(path)
    right = CliRunner().invoke(onward, ["migrate", "--drop"], input="onward.db\n")
    assert right.exit_code == 0
    assert tables(path) == {"mine"}


def test_drop_without_anybody_to_ask_does_nothing(path: Path) -> None:
    result = CliRunner().invoke(onward, ["migrate", "--drop"], input="")
    assert result.exit_code == 2
    assert "add --yes" in result.stderr
    assert "onward_workflows" in tables(path)


def test_drop_of_a_damaged_schema_can_be_confirmed_too(cli: Cli, path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("DROP TABLE onward_workflows")
    result = CliRunner().invoke(onward, ["migrate", "--drop"], input="onward.db\n")
    assert result.exit_code == 0, result.output
    assert tables(path) == {"mine"}


def test_drop_is_refused_while_a_worker_lives_and_goes_once_it_has_stopped(
    cli: Cli, flows: str, path: Path, start_worker: Start
) -> None:
    worker = start_worker(flows, "--name", "busy")
    worker.until("works on")
    refused = cli("migrate", "--drop", "--yes")
    assert refused.exit_code == 4
    assert refused.stderr.splitlines()[-1].startswith("error: nothing was removed: 1 worker alive (busy)")
    assert "onward_workflows" in tables(path)
    worker.process.terminate()
    assert worker.wait() == 0
    assert cli("migrate", "--drop", "--yes").exit_code == 0
    assert tables(path) == {"mine"}
    assert not path.with_name("onward.db-workers").exists()


def test_drop_by_force_goes_under_a_living_worker(cli: Cli, flows: str, path: Path, start_worker: Start) -> None:
    start_worker(flows).until("works on")
    assert cli("migrate", "--drop", "--yes", "--force").exit_code == 0
    assert tables(path) == {"mine"}


def test_drop_of_a_missing_file_ends_with_5_and_makes_none(cli: Cli, tmp_path: Path) -> None:
    result = cli("migrate", "--drop", "--yes")
    assert result.exit_code == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--check", "--drop"], ["--sql", "--drop"], ["--yes"], ["--force", "--check"]])
def test_options_that_contradict_each_other_are_refused(cli: Cli, tmp_path: Path, options: list[str]) -> None:
    assert cli("migrate", *options).exit_code == 2
    assert list(tmp_path.iterdir()) == []
