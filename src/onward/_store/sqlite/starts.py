"""Starting workflows: many in one statement, each found again by its id, and told apart by its seed.

The seed is the token of one very start: a start repeated after an unknown commit finds its own row and says `created` again.
"""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import Sequence

import msgspec

from onward._store.operations import LEASE_LOST, IdConflict, Outcome, Started, StartOp
from onward._store.records import FINAL, NewWorkflow
from onward._store.scripts import Script
from onward._store.sqlite.wakes import Wakes
from onward._store.statements import json_text, load_statements

SQL = load_statements("onward._store.sqlite", "starts")


class Start(msgspec.Struct, frozen=True):
    """A StartOp at its place in the batch; `look_only` where its parent's execution is over already."""

    index: int
    op: StartOp
    look_only: bool = False


class _Known(msgspec.Struct, array_like=True, gc=False):
    """A row that has the id, present before or put there by this batch."""

    id: str
    type: str
    digest: str
    seed: str
    parent_id: str | None
    status: str = "pending"


_found = msgspec.json.Decoder(list[_Known])
_shared_columns = operator.attrgetter(
    "type", "queue", "priority", "partition", "tags", "max_attempts", "delay_us", "run_at", "timeout_us", "parent_id"
)


def insert_new(conn: sqlite3.Connection, starts: Sequence[Start], outcomes: list[Outcome], now: int) -> bool:
    """Start workflows whose ids were all made for them, without looking for them first; False, and nothing was written, where
    some are others, or where somebody has such an id nevertheless."""
    if not all(start.op.has_new_id and start.op.fence is None for start in starts):
        return False
    try:
        conn.execute(SQL["insert_workflows"], {**_new_rows([start.op.workflow for start in starts]), "now": now})
    except sqlite3.IntegrityError:
        return False
    for start in starts:
        new = start.op.workflow
        outcomes[start.index] = Started(new.id, True, new.parent_id)
    return True


def start_workflows(starts: Sequence[Start], outcomes: list[Outcome], wakes: Wakes, now: int) -> Script[None]:
    """Insert what is new, answer every start, and arrange that parents hear of children that are not theirs."""
    ids = json_text([start.op.workflow.id for start in starts])
    [[text]] = yield SQL["find_starts"], {"ids": ids}
    known = {row.id: row for row in _found.decode(text)}
    fresh: list[NewWorkflow] = []
    waiters: list[tuple[str, str]] = []
    ended: list[tuple[str, str]] = []
    for start in starts:
        new = start.op.workflow
        row = known.get(new.id)
        if row is None:
            if start.look_only:
                outcomes[start.index] = LEASE_LOST
                continue
            row = known[new.id] = _Known(new.id, new.type, new.digest, new.seed, new.parent_id)
            fresh.append(new)
        elif row.type != new.type or row.digest != new.digest:
            outcomes[start.index] = IdConflict(new.id, row.type)
            continue
        outcomes[start.index] = Started(new.id, row.seed == new.seed, row.parent_id, row.status)
        fence = start.op.fence
        if fence is not None and start.op.watch and not start.look_only:
            if row.status in FINAL:
                ended.append((fence.workflow_id, new.id))
            elif row.parent_id != fence.workflow_id:
                waiters.append((new.id, fence.workflow_id))
    if fresh:
        yield SQL["insert_workflows"], {**_new_rows(fresh), "now": now}
    if waiters:
        yield SQL["insert_waiters"], {"rows": json_text(waiters), "now": now}
    if ended:
        rows = yield SQL["deliver_known_ends"], {"rows": json_text(ended), "now": now}
        for (parent,) in rows:
            wakes.child_ended(parent, is_urgent=True)


def _new_rows(fresh: Sequence[NewWorkflow]) -> dict[str, str]:
    """The rows, and apart from them what most of a batch have in common, so that it is read only once."""
    kinds: dict[tuple[object, ...], int] = {}
    rows: list[tuple[int, str, str, str, str]] = []
    for new in fresh:
        kind = kinds.setdefault(_shared_columns(new), len(kinds))
        rows.append((kind, new.id, new.payload, new.digest, new.seed))
    return {"kinds": json_text(list(kinds)), "rows": json_text(rows)}
