"""`onward start`, `run`, `signal`, `cancel`, `retry`, `migrate`: what they do to the database and what they print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli


def shown(cli: Cli, workflow_id: str, *args: str) -> dict[str, Any]:
    result = cli("show", workflow_id, "--json", *args)
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_start_prints_the_id_alone_and_says_where_the_new_file_is(cli: Cli, flows: str, tmp_path: Path) -> None:
    result = cli("start", f"{flows}:hello", '["Ann", 2]')
    assert result.exit_code == 0
    [workflow_id] = result.stdout.splitlines()
    assert result.stderr == f"database: {tmp_path / 'onward.db'} (a new file)\n"
    assert shown(cli, workflow_id)["arguments"] == {"name": "Ann", "times": 2}


def test_start_passes_its_options_on(cli: Cli, flows: str) -> None:
    cli(
        "start", f"{flows}:hello", '{"name": "Ann"}', "--id", "h", "--queue", "mail", "--priority", "3", "--delay", "1h",
        "--timeout", "2h", "--tag", "team=a", "--tag", "kind=x",
    )  # fmt: skip
    row = shown(cli, "h")
    assert (row["queue"], row["priority"], row["tags"]) == ("mail", 3, {"team": "a", "kind": "x"})
    assert row["state"].startswith("delayed until")


def test_start_of_an_id_that_exists_gives_that_workflow_and_says_so(cli: Cli, flows: str) -> None:
    first = json.loads(cli("start", f"{flows}:hello", '["Ann"]', "--id", "h", "--json").stdout)
    assert first == {"id": "h", "created": True, "status": "pending"}
    again = cli("start", f"{flows}:hello", '["Ann"]', "--id", "h")
    assert (again.exit_code, again.stdout) == (0, "h\n")
    assert "it exists already: pending" in again.stderr


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("hello", None, "missing a required argument: 'name'"),
        ("hello", "[1]", "argument 'name' of workflow 'hello': Expected `str`, got `int`"),
        ("hello", '"Ann"', "for one argument write '[\"Ann\"]'"),
        ("hello", "Ann", "for one argument write '[\"Ann\"]'"),
        ("hello", '{"nome": "Ann"}', "it takes (name: 'str', times: 'int' = 1)"),
        ("greet", '["Ann"]', "'greet' in "),
        ("greet", '["Ann"]', "is no workflow (@onward.workflow makes one)"),
        ("hello", '["Ann"', "are no JSON"),
        ("hello", '["Ann", 1, 2]', "too many positional arguments"),
        ("hello", '{"name": "Ann", "nome": "x"}', "nome"),
        ("dated", '["tomorrow"]', "argument 'day' of workflow 'dated'"),
        ("nothing", None, "has no workflow 'nothing'; there is Group.inside, "),
    ],
)
def test_bad_input_is_told_in_one_line_and_starts_nothing(
    cli: Cli, flows: str, tmp_path: Path, target: str, arguments: str | None, message: str
) -> None:
    result = cli("start", f"{flows}:{target}", *([] if arguments is None else [arguments]))
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "onward.db").exists()


def test_a_bad_option_is_refused_before_anything_is_written(cli: Cli, flows: str, tmp_path: Path) -> None:
    for options in (["--id", "a/b"], ["--delay", "-1"], ["--delay", "soon"], ["--tag", "x"]):
        assert cli("start", f"{flows}:renamed", *options).exit_code == 2
    assert not (tmp_path / "onward.db").exists()


def test_start_without_a_workflow_lists_those_of_the_module(cli: Cli, flows: str) -> None:
    result = cli("start", flows)
    assert result.exit_code == 2
    assert f"{flows}:hello" in result.stderr


def test_wait_prints_the_result_or_ends_with_1(cli: Cli, flows: str, lived_in: str) -> None:
    done = cli("start", f"{flows}:hello", '["Ann"]', "--id", "completed", "--wait", "--url", lived_in)
    assert (done.exit_code, done.stdout) == (0, 'completed\n["hello Ann"]\n')
    failed = cli("start", f"{flows}:failing", '["no use"]', "--id", "failed", "--wait", "--url", lived_in)
    assert failed.exit_code == 1
    assert "error: workflow 'failed' failed: Fail: no use; see: onward show failed" in failed.stderr
    cancelled = cli("start", f"{flows}:hello", '["Bob"]', "--id", "cancelled", "--wait", "--url", lived_in)
    assert cancelled.exit_code == 1
    assert "was cancelled" in cancelled.stderr
    as_json = cli("start", f"{flows}:hello", '["Ann"]', "--id", "completed", "--wait", "--json", "--url", lived_in)
    assert json.loads(as_json.stdout) == {
        "id": "completed", "created": False, "status": "completed", "result": ["hello Ann"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "arguments", "result"),
    [
        ("hello", '{"name": "Ann"}', '["hello Ann"]'),
        ("dated", '["2026-07-28", "2026-07-29"]', '"2026-07-29"'),
        ("Group.inside", "", '"inside"'),
        ("named-otherwise", "[]", "null"),
        ("renamed", "{}", "null"),
    ],
)
def test_run_works_here_and_prints_the_result_alone(
    cli: Cli, flows: str, target: str, arguments: str, result: str
) -> None:
    done = cli("run", f"{flows}:{target}", arguments)
    assert (done.exit_code, done.stdout) == (0, f"{result}\n"), done.output


def test_run_of_a_failing_workflow_ends_with_1_and_says_how_to_go_on(cli: Cli, flows: str) -> None:
    first = cli("run", f"{flows}:unlucky", '["bad luck"]', "--id", "u")
    assert first.exit_code == 1
    *_, line = first.stderr.splitlines()
    assert re.match(
        r"error: StepFailed: .*bad luck.*'u' is backing off until .*: to go on, run the same with --id u$", line
    )
    row = shown(cli, "u")
    assert (row["status"], row["attempts"]) == ("pending", 1)
    assert [entry["key"] for entry in row["journal"]] == ["greet"]


def test_run_of_a_workflow_that_failed_for_good_ends_with_1_and_its_error(cli: Cli, flows: str) -> None:
    result = cli("run", f"{flows}:failing", '["no use"]', "--id", "f")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: workflow 'f' failed: Fail: no use; see: onward show f"


def test_signal_is_delivered_with_its_value(cli: Cli, flows: str, lived_in: str) -> None:
    sent = cli("signal", "waiter", "approved", "true", "--url", lived_in)
    assert (sent.exit_code, sent.stdout) == (0, "waiter: signal approved sent\n")
    done = cli("run", f"{flows}:waiter", "--id", "waiter", "--url", lived_in)
    assert done.stdout == "true\n"


def test_signal_takes_json_only_and_says_how_to_quote_a_text(cli: Cli, lived_in: str) -> None:
    result = cli("signal", "waiter", "approved", "yes", "--url", lived_in)
    assert result.exit_code == 2
    assert "'\"yes\"'" in result.stderr


def test_cancel_answers_for_each_id_and_the_first_refusal_decides_the_exit(cli: Cli, lived_in: str) -> None:
    result = cli("cancel", "pending", "nope", "completed", "sleeper", "--url", lived_in)
    assert result.exit_code == 3
    assert result.stdout.splitlines()[0] == "pending: cancelled"
    assert result.stdout.splitlines()[1].startswith("sleeper: pending, cancelling")
    assert [line.startswith("error: ") for line in result.stderr.splitlines()[1:]] == [True, True]


def test_retry_makes_failed_ones_pending_and_hastens_those_that_back_off(cli: Cli, lived_in: str) -> None:
    result = cli("retry", "failed", "unlucky", "--url", lived_in)
    assert result.exit_code == 0
    assert shown(cli, "failed", "--url", lived_in)["status"] == "pending"
    assert "due now" in cli("ls", "--type", "unlucky", "--url", lived_in).stdout


def test_migrate_makes_the_schema_once_and_check_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    assert cli("migrate", "--check").exit_code == 5
    assert not (tmp_path / "onward.db").exists()
    assert cli("migrate").stdout == "the schema was brought up to date\n"
    for args in (["migrate"], ["migrate", "--check"]):
        result = cli(*args)
        assert (result.exit_code, result.stdout) == (0, "the schema is up to date\n")
        assert result.stderr == f"database: {tmp_path / 'onward.db'}\n"


def test_run_takes_an_exit_in_the_workflow_for_an_error_of_it(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "onward_test_exits.py"
    file.write_text("import sys, onward\n@onward.workflow\nasync def leave() -> None:\n    sys.exit(3)\n")
    result = cli("run", f"{file}:leave", "--id", "x")
    assert result.exit_code == 1
    assert "error: SystemExit: 3; workflow 'x' is backing off" in result.stderr


def test_start_refuses_a_database_in_memory_in_which_nobody_would_run_it(cli: Cli, flows: str) -> None:
    result = cli("start", f"{flows}:hello", '["Ann"]', "--url", "memory://")
    assert result.exit_code == 5
    assert result.stderr.startswith("error: memory:// is gone when this command ends")
    assert cli("run", f"{flows}:hello", '["Ann"]', "--url", "memory://").exit_code == 0
