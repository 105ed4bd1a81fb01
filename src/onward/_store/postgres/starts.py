"""Starting workflows: many in one statement, each found again by its id, and told apart by its seed.

The seed is the token of one very start: a start repeated after an unknown commit finds its own row and says `created` again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from onward._store.operations import BUSY, LEASE_LOST, IdConflict, Outcome, Started
from onward._store.postgres.batch import Start
from onward._store.postgres.statements import Call, Statement, as_json


class WatchRow(msgspec.Struct, gc=False):
    """Who wants to hear of whose end; `type` and `digest` as started, for a conflict is not watched."""

    target: str
    waiter: str
    type: str
    digest: str
    payload: str


def is_watching(start: Start) -> bool:
    """Whether its parent is to hear of its end even where it is not its child."""
    return start.op.watch and start.op.fence is not None and not start.look_only


def watch_rows(starts: Sequence[Start]) -> bytes:
    """The watching starts as a parameter."""
    rows = [
        WatchRow(new.id, start.op.fence.workflow_id, new.type, new.digest, new.payload)
        for start in starts
        if start.op.fence is not None
        for new in [start.op.workflow]
    ]
    return as_json(rows)


def start_calls(sql: Mapping[str, Statement], starts: Sequence[Start]) -> list[Call]:
    """Insert what is new, find all, watch; the second answer is for `note_starts`."""
    fresh = sorted((start.op.workflow for start in starts if not start.look_only), key=lambda new: new.id)
    ids = list(dict.fromkeys(start.op.workflow.id for start in starts))
    calls = [sql["insert_workflows"].bind(rows=as_json(fresh)), sql["find_starts"].bind(ids=as_json(ids))]
    watching = [start for start in starts if is_watching(start)]
    if watching:
        rows = watch_rows(watching)
        calls += [sql["lock_targets"].bind(rows=rows), sql["insert_waiters"].bind(rows=rows)]
    return calls


def note_starts(answer: bytes | None, starts: Sequence[Start], outcomes: list[Outcome]) -> None:
    """Answer every start from what was found."""
    known = {row[0]: row for row in msgspec.json.decode(answer or b"[]")}
    for start in starts:
        new = start.op.workflow
        row = known.get(new.id)
        if row is None:
            # Its parent's execution is over and this start was not part of it; or the row that had the id was there when it
            # should have been inserted, and was pruned since.
            outcomes[start.index] = LEASE_LOST if start.look_only else BUSY
            continue
        _, kind, digest, seed, parent_id, status, payload = row
        is_same = digest == new.digest if payload is None else same_arguments(payload, new.payload)
        if kind != new.type or not is_same:
            outcomes[start.index] = IdConflict(new.id, kind)
        else:
            outcomes[start.index] = Started(new.id, seed == new.seed, parent_id, status)


def same_arguments(one: str, other: str) -> bool:
    """Whether two stored arguments are the same call, as the schema's function `same_arguments` has it: SQL cannot make the
    library's digests, so a workflow that it has started is compared by its arguments."""
    values = [msgspec.json.decode(text) for text in (one, other)]
    if {type(value) for value in values} == {dict, list}:
        values = [list(value.values()) if isinstance(value, dict) else value for value in values]
    return _is_equal(*values)


def _is_equal(one: Any, other: Any) -> bool:
    """As JSON: true is not 1, but 1.0 is."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(_is_equal(value, other[key]) for key, value in one.items())
        case list(), list():
            return len(one) == len(other) and all(map(_is_equal, one, other))
        case _:
            return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
