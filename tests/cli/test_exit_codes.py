"""Exit codes and error lines: the part of the command line that scripts rely on."""

from __future__ import annotations

import inspect
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from onward import errors
from onward.cli.group import EXIT_CODES, exit_code
from tests.cli.conftest import Cli
from tests.postgres.server import server_url

READS = [
    ["ls"],
    ["show", "x"],
    ["signal", "x", "go"],
    ["cancel", "x"],
    ["retry", "x"],
    ["migrate", "--check"],
    ["doctor"],
]


def error_of(stderr: str) -> str:
    """The one error line, whose form is `error: …`."""
    lines = [line for line in stderr.splitlines() if not line.startswith("database: ")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("command", READS, ids=lambda command: command[0])
def test_a_missing_file_is_an_error_with_its_absolute_path_and_the_cure_and_stays_missing(
    cli: Cli, tmp_path: Path, command: list[str]
) -> None:
    result = cli(*command)
    assert result.exit_code == 5
    message = error_of(result.stderr)
    assert str(tmp_path / "onward.db") in message
    assert "onward migrate" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", READS, ids=lambda command: command[0])
def test_a_file_without_schema_is_an_error_with_the_cure_and_gets_none(
    cli: Cli, tmp_path: Path, command: list[str]
) -> None:
    path = tmp_path / "onward.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE mine (x)")
    conn.close()
    result = cli(*command)
    assert result.exit_code == 5
    assert "onward migrate" in error_of(result.stderr)
    conn = sqlite3.connect(path)
    assert conn.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    conn.close()


@pytest.mark.parametrize(
    "url",
    ["onward.db", "sqlite://host/x.db", "mysql://h/x", "postgresql://u:secret@h/x", "sqlite:////no/such/dir/x.db"],
)
def test_a_url_that_cannot_be_used_ends_with_5_and_shows_no_password(cli: Cli, flows: str, url: str) -> None:
    for command in (
        ["ls"],
        ["start", f"{flows}:hello", '["x"]'],
        ["run", f"{flows}:renamed"],
        ["worker", flows],
        ["migrate"],
    ):
        result = cli("--url", url, *command)
        assert result.exit_code == 5, command
        assert "secret" not in error_of(result.stderr)


@pytest.mark.parametrize("command", ["ls", "start", "worker"])
def test_a_database_or_user_that_the_server_does_not_know_ends_it_with_5_and_is_not_tried_again(
    cli: Cli, flows: str, command: str
) -> None:
    url = urlsplit(server_url())
    place = url.netloc.rpartition("@")[2]
    arguments = {"ls": [], "start": [f"{flows}:hello", '["Ann"]'], "worker": [flows]}[command]
    for wrong, words in (
        (
            url._replace(path="/no_such_database"),
            'database "no_such_database" does not exist; there is no such database',
        ),
        (url._replace(netloc=f"no_such_user:secret@{place}"), "check the user and the password in the database URL"),
    ):
        result = cli(command, *arguments, "--url", urlunsplit(wrong))
        assert result.exit_code == 5
        assert words in error_of(result.stderr)
        assert "try again" not in result.stderr
        assert "secret" not in result.stderr


def test_a_file_that_is_no_database_ends_with_5(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "onward.db").write_text("this is no database, " * 100)
    result = cli("ls")
    assert result.exit_code == 5
    assert "not an SQLite database" in error_of(result.stderr)


@pytest.mark.parametrize("command", READS[1:5], ids=lambda command: command[0])
def test_an_unknown_id_ends_with_3(cli: Cli, lived_in: str, command: list[str]) -> None:
    result = cli(*command, "--url", lived_in)
    assert result.exit_code == 3
    assert "'x'" in error_of(result.stderr)


def test_ls_before_an_unknown_id_ends_with_3(cli: Cli, lived_in: str) -> None:
    assert cli("ls", "--url", lived_in, "--before", "x").exit_code == 3


def test_what_has_ended_ends_with_4(cli: Cli, lived_in: str) -> None:
    for command in (["signal", "completed", "go"], ["cancel", "failed"], ["retry", "completed"]):
        result = cli("--url", lived_in, *command)
        assert result.exit_code == 4, command
        error_of(result.stderr)


def test_a_taken_id_ends_with_4(cli: Cli, lived_in: str, flows: str) -> None:
    result = cli("start", f"{flows}:hello", '["other"]', "--id", "completed", "--url", lived_in)
    assert result.exit_code == 4
    assert "'completed' is taken" in error_of(result.stderr)


def test_the_traceback_is_shown_with_log_level_debug_only(cli: Cli, lived_in: str) -> None:
    assert "Traceback" not in cli("show", "x", "--url", lived_in).stderr
    result = cli("show", "x", "--url", lived_in, "--log-level", "debug")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "WorkflowNotFound" in result.stderr


def test_every_error_class_has_a_code_that_the_help_lists() -> None:
    classes = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, errors.OnwardError)]
    assert len(classes) > 20
    for cls in classes:
        assert f"\n  {exit_code(cls.__new__(cls))}  " in EXIT_CODES, cls


def test_the_help_of_the_group_lists_the_exit_codes_and_all_commands(cli: Cli) -> None:
    text = cli("--help").stdout
    assert "Exit codes:\n    0  done" in text
    for name in ("cancel", "demo", "doctor", "ls", "migrate", "retry", "run", "show", "signal", "start", "worker"):
        assert f"\n  {name} " in text


def test_an_unknown_command_is_a_usage_error_that_offers_the_one_that_is_nearly_spelled_so(cli: Cli) -> None:
    result = cli("strat")
    assert result.exit_code == 2
    assert error_of(result.stderr) == "error: there is no command 'strat': is 'start' meant?; see: onward --help"
    assert "there are cancel, copy, demo, " in error_of(cli("xyz").stderr)


@pytest.mark.parametrize(
    ("command", "words", "cure"),
    [
        (["ls", "--limit", "0"], "invalid value for '--limit': 0", "see: onward ls --help"),
        (["ls", "--zzzz"], "--zzzz", "see: onward ls --help"),
        (["--zzzz", "ls"], "--zzzz", "see: onward --help"),
        (["--url"], "--url", "see: onward --help"),
        (["show"], "missing argument 'ID'", "usage: onward show [OPTIONS] ID"),
        (["show", "a", "b"], "got unexpected extra argument (b)", "see: onward show --help"),
        (["migrate", "--yes"], "--yes and --force belong to --drop", "see: onward migrate --help"),
    ],
)
def test_wrong_usage_is_one_line_like_every_other_error(cli: Cli, command: list[str], words: str, cure: str) -> None:
    result = cli(*command)
    assert result.exit_code == 2
    assert result.stdout == ""
    line = error_of(result.stderr)  # the wording between them is click's, and changes with its versions
    assert words in line
    assert line.endswith(f"; {cure}")


def test_the_command_alone_shows_its_help(cli: Cli) -> None:
    result = cli()
    assert "Exit codes:" in result.output
    assert "error:" not in result.output
