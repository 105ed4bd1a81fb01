"""`onward ls`."""

from __future__ import annotations

import importlib
import io
import json
import re

import pytest

from onward.cli.ls import plain_table
from tests.cli.conftest import Cli

EVERYTHING = {
    "completed", "failed", "cancelled", "unlucky", "retrying", "sleeper", "waiter", "parent", "parent/hello",
    "parent/waiter", "delayed", "pending",
}  # fmt: skip


def ids(cli: Cli, *args: str) -> list[str]:
    result = cli("ls", "--json", *args)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["id"] for line in result.stdout.splitlines()]


def test_all_workflows_are_listed_newest_first_with_their_states_in_words(cli: Cli, lived_in: str) -> None:
    result = cli("ls", "--url", lived_in)
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["ID", "TYPE", "STATE", "STEP", "CREATED"]
    assert {row.split()[0] for row in rows} == EVERYTHING
    assert [row.split()[0] for row in rows][:2] == ["pending", "delayed"]
    for pattern in (
        r"sleeping \((2 d 23 h|3 d) left\)",
        r"delayed \((1 h|59 min) left\)|delayed \(59 min",
        r"failed, needs review",
        r"waiting for signal approved \(",
        r"backing off \(",
        r"waiting for child parent/waiter",
    ):
        assert re.search(pattern, result.stdout), f"{pattern} is not in\n{result.stdout}"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--status", "completed"], {"completed", "parent/hello"}),
        (["--status", "failed", "--status", "cancelled"], {"failed", "cancelled"}),
        (["--type", "waiter"], {"waiter", "parent/waiter"}),
        (["--tag", "team=a"], {"completed", "cancelled"}),
        (["--tag", "team=a", "--tag", "kind=x"], {"completed"}),
        (["--since", "1h"], EVERYTHING),
        (["--since", "2020-01-01"], EVERYTHING),
        (["--since", "0s"], set()),
    ],
)
def test_filters(cli: Cli, lived_in: str, filters: list[str], expected: set[str]) -> None:
    assert set(ids(cli, "--url", lived_in, *filters)) == expected


def test_pages_follow_each_other_without_gap_or_repetition(cli: Cli, lived_in: str) -> None:
    everything = ids(cli, "--url", lived_in)
    assert len(everything) == len(EVERYTHING)
    pages: list[str] = []
    while True:
        before = ["--before", pages[-1]] if pages else []
        page = ids(cli, "--url", lived_in, "--limit", "5", *before)
        if not page:
            break
        pages += page
    assert pages == everything


def test_a_full_page_says_how_to_get_the_next(cli: Cli, lived_in: str) -> None:
    result = cli("ls", "--url", lived_in, "--limit", "2")
    assert "onward ls --before delayed" in result.stderr


def test_a_json_line_has_the_whole_workflow(cli: Cli, lived_in: str) -> None:
    [line] = cli("ls", "--url", lived_in, "--json", "--tag", "kind=x").stdout.splitlines()
    shown = json.loads(line)
    assert shown["status"] == shown["state"] == "completed"
    assert shown["arguments"] == {"name": "Ann"}
    assert shown["result"] == ["hello Ann"]
    assert shown["tags"] == {"team": "a", "kind": "x"}
    assert shown["created_at"].endswith("Z")


def test_an_empty_list_says_so_and_is_no_error(cli: Cli, lived_in: str) -> None:
    result = cli("ls", "--url", lived_in, "--type", "nothing")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no workflows fit" in result.stderr
    cli("migrate")
    assert "no workflows yet" in cli("ls").stderr


@pytest.mark.parametrize(
    "args", [["--status", "sleeping"], ["--since", "soon"], ["--tag", "team"], ["--limit", "0"], ["--limit", "1001"]]
)
def test_wrong_filters_are_usage_errors(cli: Cli, lived_in: str, args: list[str]) -> None:
    assert cli("ls", "--url", lived_in, *args).exit_code == 2


def test_plain_tables_are_aligned_and_never_cut() -> None:
    assert plain_table([["ID", "TYPE"], ["a" * 300, "x"], ["b", ""]]) == [
        "ID" + " " * 300 + "TYPE",
        "a" * 300 + "  x",
        "b",
    ]


def test_rich_tables_never_cut_ids() -> None:
    pytest.importorskip("rich", reason="the [cli] extra is not installed")
    tables = importlib.import_module("onward.cli.tables")
    console = importlib.import_module("rich.console").Console
    screen = io.StringIO()
    long_id = "01a202f9-cc76-73ed-9ad6-334db81da3a9"
    rows = [[long_id, "some_type", "waiting for a signal " * 5]]
    tables.print_rich(["ID", "TYPE", "STATE"], rows, ["waiting"], console(file=screen, width=60))
    assert long_id in screen.getvalue()
