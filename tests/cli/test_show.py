"""`onward show`: the state, the reason of any wait, the journal."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.conftest import Cli


def shown(cli: Cli, url: str, workflow_id: str, *args: str) -> str:
    result = cli("show", workflow_id, "--url", url, *args)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("workflow_id", "expected"),
    [
        ("completed", [r"state +completed\n", r'arguments +\{"name":"Ann"\}', r'result +\["hello Ann"\]', r"tags +kind=x"]),
        ("failed", [r"state +failed, needs review", r"onward retry failed", r"error +Fail: no use"]),
        ("cancelled", [r"state +cancelled", r"nothing recorded"]),
        ("sleeper", [r"state +sleeping until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(in (2 d 23 h|3 d)\)"]),
        ("waiter", [r"waits for signal approved: onward signal waiter approved JSON", r"timer timeout until .* UTC \(in \d"]),
        ("unlucky", [r"state +backing off until .* \((in \d|due now)", r"attempts +1 of 5 failed", r"last error StepFailed: .*bad luck"]),
        ("retrying", [r"state +backing off until", r"call_service is tried again at .* \((in \d|due now).*try 1 failed: RuntimeError: serv"]),
        ("parent", [r"waiting for child parent/waiter", r'progress +\{"done":1\}', r"children \(2\)\n  parent/hello  completed"]),
        ("parent/waiter", [r"parent +parent\n"]),
        ("delayed", [r"state +delayed until .* \(in (\d\d min|1 h)"]),
        ("pending", [r"state +pending\n"]),
    ],
)  # fmt: skip
def test_each_state_is_told_with_its_reason(cli: Cli, lived_in: str, workflow_id: str, expected: list[str]) -> None:
    text = shown(cli, lived_in, workflow_id)
    for pattern in expected:
        assert re.search(pattern, text), f"{pattern} is not in\n{text}"


def test_the_journal_is_a_timeline_with_times_durations_arguments_and_results(cli: Cli, lived_in: str) -> None:
    text = shown(cli, lived_in, "failed")
    assert "journal (2)" in text
    assert re.search(r"\n  1 +\+[\d.]+ m?s +[\d.]+ m?s  step refuse  ! ValueError: handled really\n", text), text
    assert re.search(r'\n  2 +\+[\d.]+ m?s +[\d.]+ m?s  step greet   {"name":"cleanup"} -> "hello cleanup"\n', text), (
        text
    )


def test_full_shows_tracebacks(cli: Cli, lived_in: str) -> None:
    assert "Traceback" not in shown(cli, lived_in, "failed")
    text = shown(cli, lived_in, "failed", "--full")
    assert 'raise ValueError(f"{why}\\nreally")' in text
    assert "raise Fail(why)" in text


def test_json_has_the_journal_and_the_children(cli: Cli, lived_in: str) -> None:
    parent = json.loads(shown(cli, lived_in, "parent", "--json"))
    assert parent["state"] == "waiting for child parent/waiter"
    assert [child["id"] for child in parent["children"]] == ["parent/hello", "parent/waiter"]
    assert [(entry["kind"], entry["key"], entry["struck"]) for entry in parent["journal"]] == [
        ("child", "hello", False)
    ]
    retrying = json.loads(shown(cli, lived_in, "retrying", "--json"))
    [wait] = retrying["waiting_for"]
    assert (wait["kind"], wait["tries"], wait["error"]) == ("retry", 1, "RuntimeError: service down")
