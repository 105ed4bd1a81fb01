"""`tx=` on PostgreSQL against workers and other applications: sessions that overlap, in each order that matters.

The application's transaction is open while the others write; nothing here waits by the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from onward import Client, Signal, step, workflow
from onward._store.operations import (
    APPLIED,
    BUSY,
    CancelOp,
    FailAttemptOp,
    Fence,
    FinishOp,
    JournalOp,
    SignalOp,
    StartOp,
)
from tests.conformance.support import claim_one, entry, new, one, park, request, row, start, worker_row
from tests.engine.support import Lab
from tests.engine.txpostgres import settings
from tests.engine.txsupport import lab_of

approved = Signal("approved", bool)
FUTURE = 4_000_000_000_000_000


@step
async def touch(n: int) -> int:
    """The plainest one."""
    return n


@workflow
async def steps_then_approval(n: int) -> bool:
    """Records a few entries, then waits for the signal."""
    for number in range(n):
        await touch(number)
    return await approved.wait()


@workflow
async def flow(n: int) -> int:
    """The plainest one."""
    return n


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A schema on PostgreSQL."""
    return lab_of("psycopg", tmp_path)


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    """For calls on connections of the application."""
    with Client(lab.url) as made:
        yield made


@contextlib.contextmanager
def application(lab: Lab, **options: Any) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the application."""
    with contextlib.closing(psycopg.connect(**settings(lab), **options)) as conn:
        conn.execute("SET lock_timeout = '20s'")  # whoever is blocked where nobody should be, fails
        conn.commit()
        yield conn


@contextlib.asynccontextmanager
async def worker(lab: Lab) -> AsyncIterator[None]:
    """A worker's row, so that the store's claims are allowed."""
    leases = lab.store.leases()
    await asyncio.to_thread(leases.register, worker_row("w1"), 3_600_000_000)
    try:
        yield
    finally:
        await asyncio.to_thread(leases.close)


async def waits_for_a_lock(lab: Lab, conn: psycopg.Connection[Any]) -> None:
    """Until the server says that this connection's statement waits for another session."""
    pid = conn.info.backend_pid

    async def look() -> bool:
        [(blockers,)] = await asyncio.to_thread(lab.sql, "SELECT pg_blocking_pids(%s)", pid)
        return bool(blockers)

    await lab.until(look)


async def signals(lab: Lab, workflow_id: str) -> int:
    return (await row(lab.store, workflow_id)).signals


# ---------------------------------------------------------------------- nobody waits for the application


async def test_what_an_open_transaction_signals_and_cancels_is_written_by_its_worker_meanwhile(
    lab: Lab, client: Client
) -> None:
    """The workflows' rows stay free: a wake by UPDATE would make these writes busy until the application commits."""
    async with worker(lab):
        fences: dict[str, Fence] = {}
        for name in ("signalled", "cancelled", "other"):
            await start(lab.store, name)
            fences[name] = await claim_one(lab.store, name)
        with application(lab) as conn:
            client.signal("signalled", approved, True, tx=conn)
            client.handle("cancelled").cancel(tx=conn)
            writes = [JournalOp(fence, (entry(1),)) for fence in fences.values()]
            assert await lab.store.write(writes) == [APPLIED] * 3
            parks = [park(fences[name], 0, waiting=True) for name in ("signalled", "cancelled")]
            assert await lab.store.write([*parks, FinishOp(fences["other"], "completed", "1")]) == [APPLIED] * 3
            assert [await signals(lab, name) for name in ("signalled", "cancelled")] == [0, 0]
            conn.commit()
        rows = [await row(lab.store, name) for name in ("signalled", "cancelled")]
        assert [(one.status, one.signals) for one in rows] == [("pending", 1)] * 2


async def test_a_worker_goes_on_with_a_workflow_that_an_open_transaction_has_signalled(
    lab: Lab, client: Client
) -> None:
    async with lab.running(steps_then_approval, flow) as asynchronous:
        with application(lab) as conn:
            handle = await asynchronous.start(steps_then_approval.using(id="w", delay=0), 5)
            client.signal("w", approved, True, tx=conn)
            await lab.parked(handle, "approved")
            assert await (await asynchronous.start(flow, 1)).result(timeout=10) == 1
            conn.commit()
        assert await handle.result(timeout=10) is True


# ---------------------------------------------------------------------- park and signal


async def test_a_signal_committed_before_the_park_is_not_slept_through(lab: Lab, client: Client) -> None:
    async with worker(lab):
        await start(lab.store, "w")
        fence = await claim_one(lab.store, "w")
        with application(lab) as conn:
            client.signal("w", approved, True, tx=conn)
            conn.commit()
        assert await one(lab.store, park(fence, 0)) == APPLIED
        assert (await row(lab.store, "w")).status == "pending"


async def test_a_signal_inserted_before_the_park_and_committed_after_it_wakes(lab: Lab, client: Client) -> None:
    async with worker(lab):
        await start(lab.store, "w")
        fence = await claim_one(lab.store, "w")
        with application(lab) as conn:
            client.signal("w", approved, True, tx=conn)
            assert await one(lab.store, park(fence, 0)) == APPLIED
            assert (await row(lab.store, "w")).status == "waiting"
            conn.commit()
        found = await row(lab.store, "w")
        assert (found.status, found.signals) == ("pending", 1)
        assert found.next_run_at is not None


async def test_a_park_that_meets_the_commit_half_way_is_tried_again_and_does_not_sleep(
    lab: Lab, client: Client
) -> None:
    async with worker(lab):
        await start(lab.store, "w")
        fence = await claim_one(lab.store, "w")
        with application(lab) as conn:
            client.signal("w", approved, True, tx=conn)
            conn.execute("SET CONSTRAINTS ALL IMMEDIATE")  # the trigger has run, and holds the row
            assert await one(lab.store, park(fence, 0)) == BUSY
            conn.commit()
        assert await one(lab.store, park(fence, 0), retry=True) == APPLIED
        assert (await row(lab.store, "w")).status == "pending"


async def test_a_commit_that_meets_a_park_half_way_waits_for_it_and_wakes(lab: Lab, client: Client) -> None:
    async with worker(lab):
        await start(lab.store, "w")
        await claim_one(lab.store, "w")
        with application(lab) as conn, application(lab) as parking:
            client.signal("w", approved, True, tx=conn)
            parking.execute("UPDATE workflows SET status = 'waiting', worker = NULL, waiting_for = '[]' WHERE id = 'w'")
            commit = asyncio.ensure_future(asyncio.to_thread(conn.commit))
            await waits_for_a_lock(lab, conn)
            parking.commit()
            await commit
        found = await row(lab.store, "w")
        assert (found.status, found.signals) == ("pending", 1)


# ---------------------------------------------------------------------- order


async def test_mail_comes_in_the_order_of_commits_so_that_no_reader_has_passed_it(lab: Lab, client: Client) -> None:
    """A worker asks for mail above the last id that it has read: what was sent first and committed last must lie above."""
    await start(lab.store, "w")
    with application(lab) as early, application(lab) as late:
        client.signal("w", approved, True, tx=early)
        client.signal("w", approved, False, tx=late)
        late.commit()
        [inbox] = await lab.store.mail([("w", 0)])
        assert [mail.payload for mail in inbox.mail] == ["false"]
        early.commit()
        [inbox] = await lab.store.mail([("w", inbox.mail[-1].id)])
        assert [mail.payload for mail in inbox.mail] == ["true"]
    assert await signals(lab, "w") == 2


async def test_signals_of_one_transaction_arrive_in_their_order_and_once_for_a_token(lab: Lab) -> None:
    await start(lab.store, "w")
    with application(lab) as conn:
        for token in ("a", "b", "a", "c"):
            conn.execute(
                "INSERT INTO outbox (workflow_id, kind, name, token, payload) VALUES ('w', 'signal', 's', %s, '1')",
                [token],
            )
        conn.commit()
    assert lab.sql("SELECT token FROM onward_mailbox ORDER BY id") == [("a",), ("b",), ("c",)]
    assert await signals(lab, "w") == 3


async def test_two_transactions_that_signal_in_opposite_order_cannot_block_each_other(lab: Lab, client: Client) -> None:
    """At their commits both lock in order of id: the one that waits for the first row holds no other."""
    for name in ("x", "y"):
        await start(lab.store, name)
    with application(lab) as holder, application(lab) as conn, application(lab) as other:
        client.signal("y", approved, True, tx=conn)
        client.signal("x", approved, True, tx=conn)
        holder.execute("SELECT FROM workflows WHERE id = 'x' FOR UPDATE")
        commit = asyncio.ensure_future(asyncio.to_thread(conn.commit))
        await waits_for_a_lock(lab, conn)
        other.execute("SELECT FROM workflows WHERE id = 'y' FOR UPDATE NOWAIT")
        other.rollback()
        holder.rollback()
        await commit
    assert [await signals(lab, name) for name in ("x", "y")] == [1, 1]


# ---------------------------------------------------------------------- what happens in between


async def test_a_signal_to_a_workflow_that_ends_before_the_commit_leaves_nothing(lab: Lab, client: Client) -> None:
    """As if it had come just before the end: the application's transaction is not spoiled by it."""
    async with worker(lab):
        await start(lab.store, "w")
        fence = await claim_one(lab.store, "w")
        with application(lab) as conn:
            client.signal("w", approved, True, tx=conn)
            client.handle("w").cancel(tx=conn)
            assert await one(lab.store, FinishOp(fence, "completed", "1")) == APPLIED
            conn.commit()
    found = await row(lab.store, "w")
    assert (found.status, found.signals, found.cancel_requested_at) == ("completed", 0, None)
    assert lab.sql("SELECT (SELECT count(*) FROM onward_mailbox), (SELECT count(*) FROM onward_outbox)") == [(0, 0)]


async def test_a_cancel_of_what_began_before_the_commit_asks_it_to_end(lab: Lab, client: Client) -> None:
    async with worker(lab):
        await start(lab.store, "w")
        with application(lab) as conn:
            client.handle("w").cancel(tx=conn)
            await claim_one(lab.store, "w")
            conn.commit()
    found = await row(lab.store, "w")
    assert (found.status, found.signals, found.cancel_requested_at is None) == ("running", 1, False)
    assert lab.sql("SELECT kind FROM onward_mailbox") == [("cancel",)]


async def test_a_start_that_is_committed_late_is_claimed_before_later_ones(lab: Lab, client: Client) -> None:
    """It comes into sight among rows that have been looked at already."""
    async with worker(lab):
        with application(lab) as conn:
            client.start(flow.using(id="early", tx=conn), 1)
            await start(lab.store, "late", type="flow")
            [claimed] = await lab.store.claim(request(limit=1))
            assert claimed.id == "late"
            conn.commit()
        await start(lab.store, "later", type="flow")
        assert [claimed.id for claimed in await lab.store.claim(request())] == ["early", "later"]


async def test_a_savepoint_that_is_rolled_back_takes_its_signals_back_alone(lab: Lab, client: Client) -> None:
    await start(lab.store, "w")
    with application(lab) as conn:
        client.signal("w", approved, True, tx=conn)
        with contextlib.suppress(ZeroDivisionError), conn.transaction():
            client.signal("w", approved, False, tx=conn)
            _ = 1 / 0
        conn.commit()
    assert lab.sql("SELECT CAST(payload AS text) FROM onward_mailbox") == [("true",)]
    assert await signals(lab, "w") == 1


# ---------------------------------------------------------------------- the same as without a transaction

STATES = ("unbegun", "delayed", "running", "waiting", "timed", "sleeping", "backing-off", "asked", "child", "watched")
CALLS = {
    "signal": ("signal",),
    "signals": ("signal", "signal"),
    "cancel": ("cancel",),
    "cancels": ("cancel", "cancel"),
    "signal-cancel": ("signal", "cancel"),
    "cancel-signal": ("cancel", "signal"),
}


async def make(lab: Lab, name: str, state: str) -> None:
    """A workflow in this state; its reader, if any, is called `name-reader`."""
    store, reader = lab.store, f"{name}-reader"
    if state in ("child", "watched"):
        await start(store, reader)
        fence = await claim_one(store, reader)
        if state == "watched":
            await start(store, name)
        parent = reader if state == "child" else None
        await one(store, StartOp(new(name, parent_id=parent), fence, watch=True))
        await one(store, park(fence, 0, awaited=1))
        return
    await start(store, name, **({"run_at": FUTURE} if state == "delayed" else {}))
    if state in ("unbegun", "delayed"):
        return
    fence = await claim_one(store, name)
    match state:
        case "waiting":
            await one(store, park(fence, 0))
        case "timed" | "asked":
            await one(store, park(fence, 0, until=FUTURE))
        case "sleeping":
            await one(store, park(fence, 0, until=FUTURE, waiting=False))
        case "backing-off":
            await one(store, FailAttemptOp(fence, '{"type":"E","message":"no"}', 3_600_000_000))
    if state == "asked":
        await one(store, CancelOp(name))
        fence = await claim_one(store, name)
        await one(store, park(fence, 1, until=FUTURE))


async def seen(lab: Lab, name: str) -> list[tuple[object, ...]]:
    """What the calls have made of it and of its reader: rows and mail, without ids and times."""
    found: list[tuple[object, ...]] = []
    for workflow_id in (name, f"{name}-reader"):
        one = await lab.store.get(workflow_id)
        if one is None:
            continue
        due = None if one.next_run_at is None else one.next_run_at < FUTURE // 2
        living = one.signals if one.finished_at is None else None
        found.append((one.status, due, living, one.cancel_requested_at is None, one.error, one.waiting_for))
        found += [
            (kind, mail.replace(name, "NAME"), payload, error)
            for kind, mail, payload, error in lab.sql(
                "SELECT kind, name, CAST(payload AS text), CAST(error AS text) FROM onward_mailbox "
                "WHERE workflow_id = %s AND NOT is_read ORDER BY id",
                workflow_id,
            )
        ]
        found += lab.sql("SELECT awaited FROM onward_workflows WHERE id = %s", workflow_id)
    return found


@pytest.mark.parametrize("state", STATES)
async def test_a_call_in_a_transaction_leaves_what_the_same_call_leaves_without_one(
    lab: Lab, client: Client, state: str
) -> None:
    async with worker(lab):
        for label, calls in CALLS.items():
            direct, within = f"{label}-direct", f"{label}-within"
            for name in (direct, within):
                await make(lab, name, state)
            for number, call in enumerate(calls):
                await one(
                    lab.store,
                    CancelOp(direct) if call == "cancel" else SignalOp(direct, "approved", "true", f"{label}{number}"),
                )
            with application(lab) as conn:
                for call in calls:
                    if call == "cancel":
                        client.handle(within).cancel(tx=conn)
                    else:
                        client.signal(within, approved, True, tx=conn)
                conn.commit()
            assert await seen(lab, within) == await seen(lab, direct), label
