"""Starting workflows: many in one statement, each found again by its id, and told apart by its seed.

The seed is the token of one very start: a start repeated after an unknown commit finds its own row and says `created` again.

What a client starts goes a shorter way than a parent's children (`write_starts`): the rows come as a few arrays, nothing is
looked for that was inserted just now, and ids that were made for their starts are not expected to be there at all.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from onward._store.operations import BUSY, LEASE_LOST, IdConflict, Op, Outcome, Started, StartOp
from onward._store.postgres.batch import Start
from onward._store.postgres.statements import Call, Statement, as_array, as_json, as_texts
from onward._store.records import NewWorkflow
from onward.errors import StoreConflict

if TYPE_CHECKING:
    from onward._store.postgres.database import Database
    from onward._store.postgres.session import Session

FEW = 16
"""Starts that are looked for in the same round trip in which they are inserted."""
MOST_KINDS = 64
"""Kinds of rows in one statement: the server counts its way to each one's columns."""
_shared_columns = operator.attrgetter(
    "type", "queue", "priority", "partition", "tags", "max_attempts", "run_at", "delay_us", "timeout_us"
)
_id = operator.attrgetter("id")


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


async def write_starts(session: Session, database: Database, batch: Sequence[Op]) -> list[Outcome] | None:
    """Write a batch that is nothing but starts of clients, in one transaction; None, and nothing was written, if it is not, or
    if the usual way is as good. Raises StoreError."""
    starts: list[StartOp] = []
    are_new = True
    for op in batch:
        if type(op) is not StartOp or op.fence is not None or op.workflow.parent_id is not None:
            return None
        starts.append(op)
        are_new = are_new and op.has_new_id
    if are_new:
        calls, place = database.whole(_insert_calls(database.sql["insert_new_starts"], starts))
        try:
            answers = await session.run(calls, commits=True)
        except StoreConflict:  # somebody has such an id nevertheless, or a row is refused: the usual way finds out
            return None
        _inserted_count(database, answers[place])
    elif len(starts) <= FEW:
        return None
    else:
        outcomes = await _insert_or_find(session, database, starts)
        if outcomes is not None:
            return outcomes
    return [Started(op.workflow.id, True) for op in starts]


async def _insert_or_find(session: Session, database: Database, starts: Sequence[StartOp]) -> list[Outcome] | None:
    """Starts of ids that somebody chose; None if all of them were inserted."""
    sql = database.sql
    head, inserts, commit = database.opening(), _insert_calls(sql["insert_starts"], starts), sql["commit"].bind()
    async with session.hold() as converse:
        answers = await converse([*head, *inserts])
        if _inserted_count(database, answers[len(head) :]) == len(starts):
            await converse([commit], commits=True)
            return None
        ids = list(dict.fromkeys([op.workflow.id for op in starts]))
        found, _ = await converse([sql["find_starts"].bind(ids=as_json(ids)), commit], commits=True)
    outcomes: list[Outcome] = [BUSY] * len(starts)
    note_starts(found, [Start(index, op) for index, op in enumerate(starts)], outcomes)
    return outcomes


def _inserted_count(database: Database, answers: Sequence[bytes | None]) -> int:
    total = 0
    for answer in answers:
        count, now_us = msgspec.json.decode(answer or b"")
        database.clock.observe(now_us)
        total += count
    return total


def _insert_calls(statement: Statement, starts: Sequence[StartOp]) -> list[Call]:
    """The rows in order of id, as usual in a single statement. (Two batches that meet must meet in the same order.)"""
    fresh = sorted([op.workflow for op in starts], key=_id)
    kinds: dict[tuple[Any, ...], int] = {}
    numbers = [kinds.setdefault(_shared_columns(new), len(kinds) + 1) for new in fresh]
    if len(kinds) <= MOST_KINDS:
        return [_insert_call(statement, fresh, [*kinds], numbers)]
    calls: list[Call] = []
    for at in range(0, len(fresh), MOST_KINDS):
        part = fresh[at : at + MOST_KINDS]
        calls.append(_insert_call(statement, part, [_shared_columns(new) for new in part], range(1, len(part) + 1)))
    return calls


def _insert_call(
    statement: Statement, rows: Sequence[NewWorkflow], kinds: Sequence[tuple[Any, ...]], numbers: Sequence[int]
) -> Call:
    types, queues, priorities, partitions, tags, max_attempts, run_at, delays, timeouts = zip(*kinds, strict=True)
    return statement.bind(
        kinds=as_array(numbers),
        ids=as_texts([new.id for new in rows]),
        payloads=as_texts([new.payload for new in rows]),
        digests=as_texts([new.digest for new in rows]),
        seeds=as_texts([new.seed for new in rows]),
        types=as_texts(types),
        queues=as_texts(queues),
        priorities=as_array(priorities),
        partitions=_as_texts_or_null(partitions),
        tags=_as_texts_or_null(tags),
        max_attempts=as_array(max_attempts),
        run_at=_as_array_or_null(run_at),
        delays=as_array(delays),
        timeouts=_as_array_or_null(timeouts),
    )


def _as_texts_or_null(values: Sequence[str | None]) -> bytes:
    texts = [b"NULL" if value is None else as_texts([value])[1:-1] for value in values]
    return b"{%b}" % b",".join(texts)


def _as_array_or_null(values: Sequence[int | None]) -> bytes:
    return as_array([value if value is not None else "NULL" for value in values])  # type: ignore[misc]  # spelled as is
