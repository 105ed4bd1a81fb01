"""Starting workflows: many in one statement, each found again by its id, and told apart by its seed.

The seed is the token of one very start: a start repeated after an unknown commit finds its own row and says `created` again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from onward._store.operations import LEASE_LOST, IdConflict, Outcome, Started, StartOp
from onward._store.records import FINAL, NewWorkflow
from onward._store.scripts import Script
from onward._store.sqlite.wakes import Wakes
from onward._store.statements import json_text, load_statements

SQL = load_statements("onward._store.sqlite", "starts")


@dataclass(frozen=True, slots=True)
class Start:
    """A StartOp at its place in the batch; `look_only` where its parent's execution is over already."""

    index: int
    op: StartOp
    look_only: bool = False


@dataclass(slots=True)
class _Known:
    """A row that has the id, present before or put there by this batch."""

    type: str
    digest: str
    seed: str
    parent_id: str | None
    status: str


def start_workflows(starts: Sequence[Start], outcomes: list[Outcome], wakes: Wakes, now: int) -> Script[None]:
    """Insert what is new, answer every start, and arrange that parents hear of children that are not theirs."""
    ids = json_text(list(dict.fromkeys(start.op.workflow.id for start in starts)))
    [[text]] = yield SQL["find_starts"], {"ids": ids}
    known = {row[0]: _Known(*row[1:]) for row in msgspec.json.decode(text)}
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
            row = known[new.id] = _Known(new.type, new.digest, new.seed, new.parent_id, "pending")
            fresh.append(new)
        if (row.type, row.digest) != (new.type, new.digest):
            outcomes[start.index] = IdConflict(new.id, row.type)
            continue
        outcomes[start.index] = Started(new.id, row.seed == new.seed, row.parent_id, row.status)
        if start.op.fence is not None and not start.look_only:
            parent = start.op.fence.workflow_id
            if row.status in FINAL and start.op.watch:
                ended.append((parent, new.id))
            elif row.parent_id != parent and start.op.watch:
                waiters.append((new.id, parent))
    if fresh:
        yield SQL["insert_workflows"], {"rows": json_text([_new_row(new) for new in fresh]), "now": now}
    if waiters:
        yield SQL["insert_waiters"], {"rows": json_text(waiters), "now": now}
    if ended:
        rows = yield SQL["deliver_known_ends"], {"rows": json_text(ended), "now": now}
        for (parent,) in rows:
            wakes.child_ended(parent, is_urgent=True)


def _new_row(n: NewWorkflow) -> tuple[object, ...]:
    return (
        n.id, n.type, n.payload, n.digest, n.seed, n.queue, n.priority, n.partition, n.tags, n.max_attempts,
        n.delay_us, n.run_at, n.timeout_us, n.parent_id,
    )  # fmt: skip
