"""The text of `onward show`, from made-up workflows: what a short test database does not have."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec
import pytest

from onward._store.records import JournalRow, WorkerInfo, WorkflowRow
from onward.cli.timeline import Picture, lines
from onward.info import JournalEntry, WorkflowInfo, microseconds

NOW = datetime(2026, 7, 28, 12, 0, tzinfo=UTC)
ERROR = '{"type":"ValueError","message":"boom","traceback":"Traceback\\n  the place"}'


def us(seconds: float) -> int:
    """So many seconds before (negative) or after NOW."""
    return microseconds(NOW + timedelta(seconds=seconds))


def workflow(**changes: Any) -> WorkflowInfo:
    row = WorkflowRow(
        id="w", type="flow", status="pending", queue="default", priority=0, partition=None, payload="{}", digest="",
        result=None, error=None, progress=None, tags=None, step=None, waiting_for=None, attempts=0, crashes=0,
        max_attempts=5, epoch=0, signals=0, run=0, worker=None, parent_id=None, version=None, code_version=None,
        next_run_at=None, deadline=None, cancel_requested_at=None, created_at=us(-100), started_at=us(-90),
        updated_at=us(-90), finished_at=None,
    )  # fmt: skip
    return WorkflowInfo.of(msgspec.structs.replace(row, **changes))


def entry(seq: int, key: str, kind: Any = "step", **changes: Any) -> JournalEntry:
    row = JournalRow(
        seq=seq, key=key, kind=kind, digest=None, arguments=None, result=None, error=None, tries=0,
        started_at=None, finished_at=us(-90 + seq), struck=False,
    )  # fmt: skip
    return JournalEntry.of(msgspec.structs.replace(row, **changes))


def worker(**changes: Any) -> WorkerInfo:
    info = WorkerInfo(
        id="k", name="host:1", host="host", pid=1, queues=("default",), types=("flow",), code_version="",
        started_at=us(-50), expires_at=us(10), is_dead=False,
    )  # fmt: skip
    return msgspec.structs.replace(info, **changes)


def styled(
    info: WorkflowInfo, *journal: JournalEntry, workers: tuple[WorkerInfo, ...] = (), width: int | None = 100
) -> str:
    picture = Picture(info=info, journal=journal, children=(), workers=workers, now=NOW)
    return "\n".join(lines(picture, width=width))


def text(*args: Any, **options: Any) -> str:
    """Without colours."""
    return click.unstyle(styled(*args, **options))


def test_struck_out_entries_are_marked() -> None:
    shown = text(workflow(), entry(1, "charge", error=ERROR, struck=True, tries=2))
    assert "1  +1.0 s    step charge  [struck out, tried again] [2 tries] ! ValueError: boom" in shown


def test_every_kind_of_entry_is_told_in_words() -> None:
    shown = text(
        workflow(),
        entry(1, "greet", result='"hi"', arguments='{"name":"Ann"}', started_at=us(-90)),
        entry(2, "sleep", "timer"),
        entry(3, "signal:approved", "signal", result="true"),
        entry(4, "hello", "child", error=ERROR),
        entry(5, "start:hello", "start"),
        entry(6, "patch:new-mail", "patch"),
        entry(7, "attempt", "attempt", result="120000000"),
        entry(8, "cancel", "cancel"),
        entry(9, "timeout", "timeout"),
    )
    for line in (
        '1  +1.0 s  1.0 s  step greet       {"name":"Ann"} -> "hi"',
        "2  +2.0 s         timer sleep      fired",
        "3  +3.0 s         signal:approved  -> true",
        "4  +4.0 s         child hello      ! ValueError: boom",
        "5  +5.0 s         start:hello      child started",
        "6  +6.0 s         patch:new-mail   marked",
        "7  +7.0 s         attempt          an attempt failed; the next one after 2 min",
        "8  +8.0 s         cancel           cancel was requested",
        "9  +9.0 s         timeout          the workflow's time limit passed",
    ):
        assert f"\n  {line}" in shown, shown


def test_lines_of_the_journal_fit_the_screen_unless_full() -> None:
    long = entry(1, "greet", result=f'"{"x" * 500}"')
    assert max(len(line) for line in text(workflow(), long, width=80).splitlines()) == 80
    assert f'"{"x" * 500}"' in text(workflow(), long, width=None)


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ((), "due for 20.0 s, but no worker is running: onward worker MODULE"),
        ((worker(expires_at=us(-1)),), "but no worker is running"),
        ((worker(is_dead=True),), "but no worker is running"),
        ((worker(queues=("mail",)),), "no running worker serves queue 'default'"),
        ((worker(types=("other",)),), "no running worker has workflow 'flow'"),
        ((worker(),), "the workers are busy"),
    ],
)
def test_a_workflow_that_nobody_takes_says_why(workers: tuple[WorkerInfo, ...], reason: str) -> None:
    assert reason in text(workflow(next_run_at=us(-20)), workers=workers)


def test_a_workflow_that_was_due_just_now_is_not_suspect() -> None:
    assert "worker" not in text(workflow(next_run_at=us(-1)))


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ((worker(),), "on worker host:1\n"),
        ((worker(expires_at=us(-5)),), "on worker host:1, whose lease ended at 2026-07-28 11:59:55 UTC: the next"),
        ((), "on worker k, which is gone"),
    ],
)
def test_a_running_workflow_names_its_worker_and_whether_it_lives(workers: tuple[WorkerInfo, ...], reason: str) -> None:
    assert reason in text(workflow(status="running", worker="k"), workers=workers)


def test_control_characters_of_recorded_data_never_reach_the_terminal() -> None:
    evil = '{"type":"E","message":"\\u001b[2Jgone\\u009b2J","traceback":"\\u001b[2J\\n"}'
    info = workflow(status="failed", finished_at=us(0), error=evil, tags='{"a":"\\u001b[2J"}', progress='"\\u009b2J"')
    shown = styled(info, entry(1, "x", error=evil, arguments='"\u009b"'), width=None)
    assert "gone" in shown
    ours = re.compile("\x1b\\[(0|1|31)m|\n")
    assert ours.sub("", shown).isprintable(), repr(shown)
