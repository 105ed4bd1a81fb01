"""Histories recorded by earlier code, on every Python, still replay on this one, to the same end.

A failure here means that workflows in flight would diverge after an upgrade: mend the code, never the file.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from onward import NonDeterminismError
from onward._engine.replay.commands import Cancelled, Record, Returned
from onward._engine.replay.matching import Execution
from onward._store.records import Entry
from tests.golden.flows import FLOWS
from tests.golden.record import Golden, files, load

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
WITHOUT_NEW_WAIT_FOR = "3.11"
"""From 3.12 on `asyncio.wait_for` runs what it is given in the task that calls it: calls change their order with that."""


def differs_by_design(golden: Golden) -> bool:
    """Whether asyncio itself orders this flow otherwise here than where it was recorded (docs/guarantees.md)."""
    recorded = golden.version.partition("/")[2]
    return golden.type == "wait_for_in_gather" and (recorded == WITHOUT_NEW_WAIT_FOR) != (
        PYTHON == WITHOUT_NEW_WAIT_FOR
    )


def execution(golden: Golden, notes: list[str]) -> Execution:
    """As a worker makes it of the claimed row."""
    return Execution(
        FLOWS[golden.type].spec,
        golden.payload,
        workflow_id=golden.id,
        seed=golden.seed,
        started_at=golden.started_at,
        recorded_version=golden.version,
        note=notes.append,
    )


def fed(golden: Golden, entries: list[Entry]) -> Execution:
    """An execution that has replayed these entries."""
    core = execution(golden, [])
    core.replay(entries)
    return core


goldens = pytest.mark.parametrize("path", files(), ids=lambda path: f"{path.parent.name}-{path.stem}")


@goldens
def test_a_golden_history_replays_to_the_end_that_was_recorded(path: Path) -> None:
    """Same outcome, nothing left over, no complaint that the recording did not have."""
    golden, notes = load(path), list[str]()
    core = execution(golden, notes)
    if differs_by_design(golden):
        with pytest.raises(NonDeterminismError, match=r"it began under Python 3\.\d+, this is 3\.\d+"):
            core.replay(golden.entries)
        core.close()
        return
    core.replay(golden.entries)
    assert core.ending is None or core.take_commands() == []
    match golden.status, golden.error_type:
        case "completed", None:
            assert core.ending == Returned(golden.result or "")
        case "cancelled", _:
            assert core.ending == Cancelled(timed_out=False)
        case "failed", "WorkflowTimedOut":
            assert core.ending == Cancelled(timed_out=True)
        case _:  # the error that ended it is in no entry: its step would run again, the timers moved by the back-off
            assert core.ending is None
            assert [wait.key for wait in core.waiting()] == ["sleep", "charge"]
            sleep, attempt = core.waiting()[0], golden.entries[-1]
            assert attempt.kind == "attempt" and attempt.result is not None
            assert sleep.deadline == golden.started_at + 60_000_000 + int(attempt.result)
    assert notes == []
    core.close()


@goldens
def test_every_prefix_of_a_golden_history_replays_and_goes_on_with_the_next_entry(path: Path) -> None:
    """A worker may have died after any entry: the next one is waited for, live as on replay."""
    golden = load(path)
    if differs_by_design(golden):
        pytest.skip("asyncio of this Python orders it otherwise; see the test above")
    history = golden.entries
    for count, entry in enumerate(history):
        core = fed(golden, history[:count])
        made = [command.entry for command in core.take_commands() if isinstance(command, Record)]
        if entry.kind == "patch":  # workflow code records those itself
            assert [(found.seq, found.key) for found in made] == [
                (later.seq, later.key) for later in history[count : count + len(made)]
            ]
        else:
            assert core.ending is None, f"ended after {count} of {len(history)} entries"
            assert entry.kind in ("cancel", "timeout", "attempt") or core.wants(entry.key)
            core.deliver(entry)
            again = fed(golden, history[: count + 1])
            assert [core.waiting(), type(core.ending)] == [again.waiting(), type(again.ending)]
            again.close()
        core.close()


def test_there_are_golden_histories_of_every_flow_for_three_pythons() -> None:
    """Recorded once, kept for ever."""
    found = {(path.parent.name, path.stem) for path in files()}
    assert {(version, name) for version in ("3.11", "3.12", "3.13") for name in FLOWS} <= found


@goldens
def test_a_golden_history_is_what_a_store_would_give(path: Path) -> None:
    """Numbered from 1 without gaps, times never falling, recorded by the Python of its folder."""
    golden = load(path)
    assert [entry.seq for entry in golden.entries] == list(range(1, len(golden.entries) + 1))
    assert all(one.finished_at <= two.finished_at for one, two in pairwise(golden.entries))
    assert golden.version.partition("/")[2] == path.parent.name
    assert (golden.type, golden.id) == (path.stem, path.stem)
