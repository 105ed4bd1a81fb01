"""One entry of one execution, alone in its batch: the commit of a workflow that goes on step by step.

Called by `journal.py` before it sorts anything. The statement takes the entry's columns as its parameters, where a batch comes as
JSON: that halves what the server does beside the commit itself. What it does not write (the row is gone, taken over or locked by
somebody) is looked at the careful way, as with every other batch. Pure: knows no connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onward._store.operations import JournalOp, Op
from onward._store.postgres.statements import Call, Statement


def lone_entry(sql: Mapping[str, Statement], batch: Sequence[Op]) -> Call | None:
    """What records the batch, if it is one entry and nothing else; it answers nothing where the fence does not hold."""
    if len(batch) != 1:
        return None
    op = batch[0]
    if type(op) is not JournalOp or len(op.entries) != 1:
        return None
    if op.consumed or op.settled or op.reset_counters or op.progress is not None:
        return None
    fence, entry = op.fence, op.entries[0]
    call = sql["record_entry"].bind(
        id=fence.workflow_id,
        worker=fence.worker,
        epoch=fence.epoch,
        seq=entry.seq,
        key=entry.key,
        kind=entry.kind,
        finished_at=entry.finished_at,
        result=entry.result,
        error=entry.error,
        digest=entry.digest,
        arguments=entry.arguments,
        tries=entry.tries,
        started_at=entry.started_at,
    )
    if any(value is not None and b"\0" in value for value in call.values):
        return None  # libpq would end the value there; within JSON the server refuses it
    return call
