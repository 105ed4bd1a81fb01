"""`onward copy` as its user sees it: what it says, what it refuses, and its exit codes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from onward._engine import failpoints
from tests.cli.conftest import Cli

CONFLICT, UNUSABLE, MOVED = 4, 5, 6


@pytest.fixture
def there(tmp_path: Path) -> str:
    """The URL of a file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'there.db'}"


def test_a_copy_says_each_step_and_where_to_go_on(cli: Cli, lived_in: str, there: str) -> None:
    count = len(cli("ls", "--url", lived_in).stdout.splitlines()) - 1
    result = cli("copy", lived_in, there)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"moved {count} workflows; only Onward's tables are copied")
    assert result.stdout.endswith(f"now start the workers and clients with {there}\n")
    for words in ("is taken", "is fenced", f"copied workflows: {count} rows", "verified journal: ", "there.db is open"):
        assert words in result.stderr
    ids = [[line.split()[0] for line in cli("ls", "--url", url).stdout.splitlines()] for url in (lived_in, there)]
    assert ids[0] == ids[1]
    again = cli("copy", lived_in, there)
    assert again.exit_code == 0
    assert "complete already" in again.stdout


def test_what_was_moved_ends_commands_with_6_and_the_new_url(cli: Cli, lived_in: str, there: str, flows: str) -> None:
    cli("copy", lived_in, there)
    for command in (
        ["start", f"{flows}:hello", '["x"]'],
        ["signal", "waiter", "go"],
        ["cancel", "sleeper"],
        ["retry", "failed"],
        ["prune", "--older-than", "0"],
        ["run", f"{flows}:hello", '["x"]'],
        ["worker", flows],
    ):
        result = cli("--url", lived_in, *command)
        assert result.exit_code == MOVED, (command, result.output)
        assert f"were moved to {there}" in result.stderr
    for command in (["ls"], ["show", "sleeper"], ["migrate", "--check"]):
        assert cli("--url", lived_in, *command).exit_code == 0


def test_an_unfinished_target_ends_commands_with_6(
    cli: Cli, lived_in: str, there: str, flows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def die(point: str) -> None:
        if point == "copy:open":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", die)
        with pytest.raises(Killed):
            cli("copy", lived_in, there)
    result = cli("--url", there, "start", f"{flows}:hello", '["x"]')
    assert result.exit_code == MOVED
    assert "are being copied" in result.stderr
    survey = cli("copy", lived_in, there, "--dry-run")
    assert survey.exit_code == 0
    assert "of this copy: it would go on" in survey.stdout
    assert cli("copy", lived_in, there).exit_code == 0


def test_a_dry_run_tells_sizes_and_changes_nothing(cli: Cli, lived_in: str, there: str, tmp_path: Path) -> None:
    result = cli("copy", lived_in, there, "--dry-run")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["workflows", "journal", "mailbox", "waiters", "step_retries"]
    assert "workflows not finished, 0 of them running" in lines[5]
    assert "your own tables stay" in result.stdout
    assert "would be made" in lines[-1]
    assert not (tmp_path / "there.db").exists()
    cli("migrate", "--url", there)
    assert "the copy can begin" in cli("copy", lived_in, there, "--dry-run").stdout
    assert cli("cancel", "sleeper", "--url", lived_in).exit_code == 0


def test_an_abort_frees_both(cli: Cli, lived_in: str, there: str, flows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    def die(point: str) -> None:
        if point == "copy:verify":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", die)
        with pytest.raises(Killed):
            cli("copy", lived_in, there)
    result = cli("copy", lived_in, there, "--abort")
    assert result.exit_code == 0
    assert "given up" in result.stdout
    assert cli("--url", lived_in, "cancel", "sleeper").exit_code == 0
    assert cli("--url", there, "start", f"{flows}:hello", '["x"]').exit_code == 0
    result = cli("copy", lived_in, there, "--abort")
    assert (result.exit_code, "nothing was done" in result.stdout) == (0, True)


def test_a_complete_copy_cannot_be_aborted(cli: Cli, lived_in: str, there: str) -> None:
    cli("copy", lived_in, there)
    result = cli("copy", lived_in, there, "--abort")
    assert result.exit_code == CONFLICT
    assert "is complete" in result.stderr
    assert cli("--url", lived_in, "cancel", "sleeper").exit_code == MOVED


def test_what_cannot_be_source_and_target_ends_with_4(cli: Cli, lived_in: str, there: str, flows: str) -> None:
    assert cli("copy", lived_in, lived_in).exit_code == CONFLICT
    cli("--url", there, "start", f"{flows}:hello", '["x"]')
    result = cli("copy", lived_in, there)
    assert result.exit_code == CONFLICT
    assert "not empty" in result.stderr


def test_what_cannot_be_used_ends_with_5_and_makes_nothing(cli: Cli, lived_in: str, there: str, tmp_path: Path) -> None:
    for source, target in (
        (f"sqlite:///{tmp_path}/missing.db", there),
        ("memory://", there),
        (lived_in, "memory://"),
        (lived_in, "mysql://u:secret@h/x"),
        (lived_in, "postgresql://u:secret@localhost:1/x?connect_timeout=1"),
    ):
        result = cli("copy", source, target, *(["--dry-run"] if "localhost" in target else []))
        assert result.exit_code == UNUSABLE, (source, target, result.output)
        assert "secret" not in result.output
    assert not (tmp_path / "there.db").exists()
    with closing(sqlite3.connect(tmp_path / "lived-in.db")) as conn:
        assert conn.execute("SELECT count(*) FROM onward_moving").fetchone() == (0,)


def test_options_that_exclude_each_other_are_usage_errors(cli: Cli, lived_in: str, there: str) -> None:
    assert cli("copy", lived_in, there, "--force").exit_code == 2
    assert cli("copy", lived_in, there, "--abort", "--dry-run").exit_code == 2
    assert cli("copy", lived_in).exit_code == 2
