"""Claiming due rows, loading histories, the next due time, and giving rows back: each one round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from onward._store.postgres.floors import Floors, Look
from onward._store.postgres.statements import Call, Value, as_json
from onward._store.records import JOURNAL_FORMAT, Claimed, ClaimRequest, Loaded

if TYPE_CHECKING:
    from onward._store.postgres.database import Database
    from onward._store.postgres.pool import SessionPool
    from onward._store.postgres.session import Session

_claims = msgspec.json.Decoder(tuple[list[Claimed], Look])
_look = msgspec.json.Decoder(Look)
_histories = msgspec.json.Decoder(list[Loaded])
_ids = msgspec.json.Decoder(list[str])


async def _ask(
    session: Session, database: Database, name: str, values: Mapping[str, Value], *, commits: bool = False
) -> bytes | None:
    calls, place = database.whole([database.sql[name].bind(**values)])
    return (await session.run(calls, commits=commits))[place][0]


async def claim(
    session: Session, readers: SessionPool, database: Database, floors: Floors, request: ClaimRequest
) -> list[Claimed]:
    """Take up to `limit` rows."""
    queue, alone, only = request.queue, request.alone, request.only
    limit = 1 if alone else request.limit
    filters: dict[str, Value] = {
        "queue": queue,
        "types": as_json(request.types),
        "code_version": request.code_version,
        "format": int(request.version.partition("/")[0]),
        "alone": alone,
    }
    values: dict[str, Value] = {**filters, "worker": request.worker, "version": request.version, "limit": limit}
    if only is not None:
        answer = await _ask(session, database, "claim_only", {**values, "only": as_json(only)}, commits=True)
        claimed, look = _claims.decode(answer or b"")
        database.clock.observe(look.now)
        return claimed
    floor = floors.of(queue, alone)
    if floor is None:
        answer = await _ask(session, database, "claim_due", values, commits=True)
    else:
        answer = await _ask(session, database, "claim_from", {**values, "floors": as_json(floor)}, commits=True)
    claimed, look = _claims.decode(answer or b"")
    database.clock.observe(look.now)
    floors.claimed(queue, alone, look, len(claimed), limit)

    async def look_at_everything() -> Look:
        async with readers.session() as reader:
            return _look.decode(await _ask(reader, database, "look_at_everything", filters) or b"")

    floors.look_beside(queue, alone, look_at_everything)
    return claimed


async def load(session: Session, database: Database, workflow_ids: Sequence[str]) -> list[Loaded]:
    """Histories, mail and retry states."""
    return _histories.decode(await _ask(session, database, "load_histories", {"ids": as_json(workflow_ids)}) or b"[]")


async def next_due(
    session: Session,
    database: Database,
    floors: Floors,
    queues: Sequence[str],
    types: Sequence[str],
    code_version: str,
    only: Sequence[str] | None,
    *,
    alone: bool | None,
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
    wanted: list[Call] = []
    if only is not None:
        wanted.append(database.sql["next_due_only"].bind(**values))
    else:
        low = {queue: floor for queue in queues if (floor := floors.of(queue, alone)) is not None}
        for queue, floor in low.items():
            wanted.append(database.sql["next_due_from"].bind(**values, queue=queue, floors=as_json(floor)))
        others = as_json([queue for queue in queues if queue not in low])
        wanted.append(database.sql["next_due"].bind(**{**values, "queues": others}))
        wanted.append(database.sql["next_held_back"].bind(**values))
    calls, place = database.whole(wanted)
    found = (await session.run(calls))[place]
    return min((int(at) for at in found if at is not None), default=None)


async def reconcile(session: Session, database: Database, worker_id: str, held: Sequence[tuple[str, int]]) -> list[str]:
    """Release what this worker has and does not hold."""
    rows = as_json([{"id": workflow_id, "epoch": epoch} for workflow_id, epoch in held])
    answer = await _ask(session, database, "release_not_held", {"worker": worker_id, "held": rows}, commits=True)
    return _ids.decode(answer or b"[]")


async def adopt_diverged(session: Session, database: Database, code_version: str) -> int:
    """Make rows due that other code versions, and never this one, could not replay."""
    return int(await _ask(session, database, "adopt_diverged", {"code_version": code_version}, commits=True) or 0)
