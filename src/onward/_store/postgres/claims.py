"""Claiming due rows, loading histories, the next due time, and giving rows back: each one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from onward._store.postgres.statements import Value, as_json
from onward._store.records import JOURNAL_FORMAT, Claimed, ClaimRequest, Loaded

if TYPE_CHECKING:
    from onward._store.postgres.database import Database
    from onward._store.postgres.session import Session

_claims = msgspec.json.Decoder(tuple[int, list[Claimed]])
_histories = msgspec.json.Decoder(list[Loaded])
_ids = msgspec.json.Decoder(list[str])


async def _ask(
    session: Session, database: Database, name: str, *, commits: bool = False, **values: Value
) -> bytes | None:
    calls, place = database.whole([database.sql[name].bind(**values)])
    return (await session.run(calls, commits=commits))[place][0]


async def claim(session: Session, database: Database, request: ClaimRequest) -> list[Claimed]:
    """Take up to `limit` rows."""
    values: dict[str, Value] = {
        "worker": request.worker,
        "queue": request.queue,
        "types": as_json(request.types),
        "version": request.version,
        "code_version": request.code_version,
        "format": int(request.version.partition("/")[0]),
        "alone": request.alone,
        "limit": 1 if request.alone else request.limit,
        "only": None if request.only is None else as_json(request.only),
    }
    name = "claim_due" if request.only is None else "claim_only"
    now, claimed = _claims.decode(await _ask(session, database, name, commits=True, **values) or b"[0,[]]")
    database.clock.observe(now)
    return claimed


async def load(session: Session, database: Database, workflow_ids: Sequence[str]) -> list[Loaded]:
    """Histories, mail and retry states."""
    return _histories.decode(await _ask(session, database, "load_histories", ids=as_json(workflow_ids)) or b"[]")


async def next_due(
    session: Session,
    database: Database,
    queues: Sequence[str],
    types: Sequence[str],
    code_version: str,
    only: Sequence[str] | None,
    *,
    alone: bool,
) -> int | None:
    """The earliest time at which a row is claimable."""
    values: dict[str, Value] = {
        "queues": as_json(queues),
        "types": as_json(types),
        "code_version": code_version,
        "only": as_json(only),
        "alone": alone,
        "format": JOURNAL_FORMAT,
    }
    names = ("next_due", "next_held_back") if only is None else ("next_due_only",)
    calls, place = database.whole([database.sql[name].bind(**values) for name in names])
    found = (await session.run(calls))[place]
    return min((int(at) for at in found if at is not None), default=None)


async def reconcile(session: Session, database: Database, worker_id: str, held: Sequence[tuple[str, int]]) -> list[str]:
    """Release what this worker has and does not hold."""
    rows = as_json([{"id": workflow_id, "epoch": epoch} for workflow_id, epoch in held])
    answer = await _ask(session, database, "release_not_held", commits=True, worker=worker_id, held=rows)
    return _ids.decode(answer or b"[]")


async def adopt_diverged(session: Session, database: Database, code_version: str) -> int:
    """Make rows due that other code versions, and never this one, could not replay."""
    return int(await _ask(session, database, "adopt_diverged", commits=True, code_version=code_version) or 0)
