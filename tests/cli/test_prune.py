"""`onward prune`: what it deletes, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click import unstyle

from onward._engine.pruning import prune as prune_all
from tests.cli.conftest import Cli


def ids(cli: Cli, url: str) -> set[str]:
    return {json.loads(line)["id"] for line in cli("ls", "--url", url, "--json").stdout.splitlines()}


def test_it_deletes_what_has_finished_and_says_how_many(cli: Cli, lived_in: str) -> None:
    before = ids(cli, lived_in)
    result = cli("prune", "--url", lived_in, "--older-than", "0")
    assert result.exit_code == 0
    assert result.stdout == "deleted 3 workflows that finished\n"
    assert "database: " in result.stderr
    assert before - ids(cli, lived_in) == {"completed", "failed", "cancelled"}
    assert cli("show", "completed", "--url", lived_in).exit_code == 3
    assert cli("prune", "--url", lived_in, "--older-than", "0").stdout == "deleted 0 workflows that finished\n"


def test_what_is_younger_stays(cli: Cli, lived_in: str) -> None:
    result = cli("prune", "--url", lived_in, "--older-than", "30d")
    assert result.stdout == "deleted 0 workflows that finished more than 30 d ago\n"
    assert {"completed", "failed", "cancelled"} <= ids(cli, lived_in)


def test_a_dry_run_counts_and_deletes_nothing(cli: Cli, lived_in: str) -> None:
    before = ids(cli, lived_in)
    assert cli("prune", "--url", lived_in, "--older-than", "0s", "--dry-run").stdout == (
        "would delete 3 workflows that finished\n"
    )
    assert ids(cli, lived_in) == before


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (["--status", "completed,failed"], {"completed", "failed"}),
        (["--status", "failed", "--status", "cancelled"], {"failed", "cancelled"}),
        (["--type", "hello"], {"completed", "cancelled"}),
        (["--type", "hello", "--status", "completed"], {"completed"}),
        (["--type", "nothing"], set()),
    ],
)
def test_status_and_type_choose(cli: Cli, lived_in: str, options: list[str], gone: set[str]) -> None:
    before = ids(cli, lived_in)
    assert cli("prune", "--url", lived_in, "--older-than", "0", *options).exit_code == 0
    assert before - ids(cli, lived_in) == gone


def test_json_is_one_object_and_nothing_else(cli: Cli, lived_in: str) -> None:
    result = cli("prune", "--url", lived_in, "--older-than", "0", "--json", "--dry-run")
    assert json.loads(result.stdout) == {"workflows": 3, "children": 0, "dry_run": True}
    assert result.stderr == ""


def test_children_are_counted_with_their_tree(cli: Cli, flows: str, tmp_path: Path) -> None:
    family = tmp_path / "family.py"
    family.write_text(
        "from onward import workflow\n@workflow\nasync def child(): pass\n@workflow\nasync def parent(): await child()\n"
    )
    assert cli("run", f"{family}:parent").exit_code == 0
    assert cli("prune", "--older-than", "0").stdout == (
        "deleted 2 workflows that finished, 1 of them below another one\n"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--older-than"),
        (["--older-than", "soon"], "'soon' is no duration"),
        (["--older-than", "1d", "--status", "running"], "only finished workflows are deleted"),
    ],
)
def test_wrong_usage_is_refused(cli: Cli, lived_in: str, options: list[str], words: str) -> None:
    result = cli("prune", "--url", lived_in, *options)
    assert result.exit_code == 2
    assert words in " ".join(unstyle(result.stderr).split())


def test_a_missing_database_is_an_error_and_stays_missing(cli: Cli, tmp_path: Path) -> None:
    assert cli("prune", "--older-than", "1d").exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_cut_off_says_what_it_has_deleted(cli: Cli, lived_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cut_off(*args: object, **options: object) -> object:
        await prune_all(*args, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr("onward.cli.prune.prune_all", cut_off)
    result = cli("prune", "--url", lived_in, "--older-than", "0")
    assert result.exit_code == 130
    assert "deleted 3 workflows before it was cut off" in result.stderr
