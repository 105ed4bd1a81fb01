"""The quick flush: what it writes is what the general way would have written, and it leaves alone what is not plain."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any, TypeAlias

import pytest

from onward._store.operations import APPLIED, LEASE_LOST, Fence, FinishOp, JournalOp, Op, ParkOp, SignalOp, StartOp
from onward._store.records import StepRetry
from onward._store.sqlite import flush
from onward._store.sqlite.store import SqliteStore
from tests.conformance.support import SqliteWorld, claim_one, entry, new, one, row, started_and_claimed

TABLES = ("workflows", "journal", "mailbox", "waiters", "step_retries")


async def opened(world: SqliteWorld) -> SqliteStore:
    store = await world.open()
    assert isinstance(store, SqliteStore)
    return store


def contents(world: SqliteWorld) -> dict[str, list[Any]]:
    """All rows of all tables that a flush writes."""
    with closing(sqlite3.connect(world.path)) as conn:
        return {name: conn.execute(f"SELECT * FROM onward_{name} ORDER BY 1, 2").fetchall() for name in TABLES}


async def three_held(world: SqliteWorld, store: SqliteStore) -> list[Fence]:
    world.worker(store)
    return [await started_and_claimed(store, f"w{number}") for number in range(3)]


Write: TypeAlias = JournalOp | ParkOp | FinishOp


def mixed(fences: Sequence[Fence]) -> list[Write]:
    first, second, third = fences
    return [
        JournalOp(first, (entry(1, "a"),), step="a"),
        JournalOp(second, (entry(1, "sleep", kind="timer"),)),
        JournalOp(first, (entry(2, "a#2"),), step="a#2"),
        JournalOp(third, (entry(1, "a", error='{"type":"E","message":"m"}'),), step="a"),
        FinishOp(first, "completed", result='"done ✓"'),
        ParkOp(second, 0, world_time(5), False, '[{"kind":"timer"}]'),
        FinishOp(third, "failed", error='{"type":"E","message":"m"}', spends_attempt=True),
    ]


def world_time(seconds: int) -> int:
    return 1_800_000_000_000_000 + seconds * 1_000_000


async def test_a_plain_batch_leaves_the_same_rows_as_the_general_way(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(world)
    fences = await three_held(world, store)
    batch = mixed(fences)
    assert flush.prepare(batch) is not None
    assert await store.write(batch) == [APPLIED] * len(batch)
    quick = contents(world)

    monkeypatch.setattr(flush, "prepare", lambda batch: None)
    with closing(sqlite3.connect(world.path)) as conn, conn:  # as it was before
        conn.execute("DELETE FROM onward_journal")
        conn.execute(
            "UPDATE onward_workflows SET status = 'running', worker = 'w1', result = NULL, error = NULL, finished_at = NULL,"
            " next_run_at = NULL, waiting_for = NULL, attempts = 0"
        )
    assert await store.write(batch) == [APPLIED] * len(batch)
    assert contents(world) == quick


async def test_a_lost_lease_is_found_and_hurts_nobody_else(world: SqliteWorld) -> None:
    store = await opened(world)
    fences = await three_held(world, store)
    stale = Fence(fences[1].workflow_id, fences[1].worker, fences[1].epoch + 1)
    batch = mixed([fences[0], stale, fences[2]])
    outcomes = await store.write(list(batch))
    assert outcomes == [LEASE_LOST if op.fence == stale else APPLIED for op in batch]
    assert (await row(store, "w1")).status == "running"
    assert (await row(store, "w0")).status == "completed"
    assert await one(store, JournalOp(stale, (entry(1),))) == LEASE_LOST  # alone, too


async def test_an_end_that_others_wait_for_goes_the_general_way_and_is_told(world: SqliteWorld) -> None:
    store = await opened(world)
    world.worker(store)
    parent = await started_and_claimed(store, "p")
    await store.write([StartOp(new("p/c"), parent, watch=True)])
    child = await claim_one(store, "p/c")
    batch: list[Op] = [JournalOp(child, (entry(1),)), FinishOp(child, "completed", result="1")]
    plain = flush.prepare(batch)
    assert plain is not None
    with closing(sqlite3.connect(world.path, isolation_level=None)) as conn:
        assert not plain.insert(conn, store.now_us())
    assert contents(world)["journal"] == []  # nothing of the batch was written
    assert await store.write(batch) == [APPLIED, APPLIED]
    [inbox] = await store.mail([("p", 0)])
    assert [(mail.kind, mail.name, mail.payload) for mail in inbox.mail] == [("child", "p/c", "1")]


F = Fence("w", "w1", 1)


@pytest.mark.parametrize(
    "batch",
    [
        [JournalOp(F, (entry(1), entry(2)))],
        [JournalOp(F, (entry(1),), consumed=(1,))],
        [JournalOp(F, (entry(1),), settled=("a",))],
        [JournalOp(F, (entry(1),), progress="1")],
        [JournalOp(F, (entry(1),), reset_counters=True)],
        [JournalOp(F, step="a")],
        [FinishOp(F, "cancelled", cancels_children=True)],
        [ParkOp(F, 0, 1, False, "[]", (StepRetry("a", 1, 5),))],
        [FinishOp(F, "completed"), JournalOp(F, (entry(1),))],
        [FinishOp(F, "completed"), ParkOp(F, 0, 1, False, "[]")],
        [SignalOp("w", "go", "1", "t")],
        [StartOp(new("w2"))],
    ],
    ids=lambda batch: " ".join(type(op).__name__ for op in batch),
)
def test_what_touches_more_than_its_own_row_is_not_plain(batch: list[Op]) -> None:
    assert flush.prepare(batch) is None


async def test_a_plain_batch_is_one_statement(world: SqliteWorld) -> None:
    """Each further statement would be two more fights for the interpreter's lock."""
    store = await opened(world)
    fences = await three_held(world, store)
    said: list[str] = []
    await store._writer.call(lambda conn: conn.set_trace_callback(said.append))
    await store.write(mixed(fences))
    said = [text for text in said if "CREATE TEMP" not in text]  # the connection's first flush of this kind
    assert "INSERT INTO temp.onward_flush" in said[0]
    assert not [text for text in said if text.startswith(("BEGIN", "COMMIT"))]  # the rest is the trigger's


async def test_small_batches_are_written_on_the_loops_thread_where_commits_are_quick(world: SqliteWorld) -> None:
    store = await opened(world)
    world.worker(store)
    fence = await started_and_claimed(store)
    threads: list[int] = []
    real = store._database.statement_now

    def noted(*args: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return real(*args, **options)

    store._database.statement_now = noted  # type: ignore[method-assign]
    store._flushes._usual_s = 1.0
    await store.write([JournalOp(fence, (entry(1),))])
    assert threads == []  # nothing is known of the disk yet
    store._flushes._usual_s = 0.0
    await store.write([JournalOp(fence, (entry(2),))])
    assert threads == [threading.get_ident()]
    store._flushes._usual_s = 1.0
    await store.write([JournalOp(fence, (entry(3),))])
    assert threads == [threading.get_ident()]
    assert [row[1] for row in contents(world)["journal"]] == [1, 2, 3]


async def test_the_loop_never_waits_for_another_process_that_holds_the_lock(world: SqliteWorld) -> None:
    """The batch goes to the writer's thread, which waits."""
    store = await opened(world)
    world.worker(store)
    fence = await started_and_claimed(store)
    other = sqlite3.connect(world.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._flushes._usual_s = 0.0
    real, called = store._writer.call, 0

    async def call(fn: Any) -> Any:
        nonlocal called
        called += 1
        other.execute("COMMIT")
        return await real(fn)

    store._writer.call = call  # type: ignore[method-assign]
    assert await one(store, JournalOp(fence, (entry(1),))) == APPLIED
    assert called == 1
    other.close()


async def test_the_loop_never_waits_for_another_thread_that_holds_the_lock(world: SqliteWorld) -> None:
    store = await opened(world)
    world.worker(store)
    fence = await started_and_claimed(store)
    store._flushes._usual_s = 0.0
    mutex, real, called = store._database.shared.mutex, store._writer.call, 0
    assert mutex.enter_now()
    assert not mutex.enter_now()

    async def call(fn: Any) -> Any:
        nonlocal called
        called += 1
        mutex.__exit__(None, None, None)
        return await real(fn)

    store._writer.call = call  # type: ignore[method-assign]
    assert await one(store, JournalOp(fence, (entry(1),))) == APPLIED
    assert called == 1
    assert not mutex._is_held


async def test_its_statements_find_rows_by_their_primary_keys(world: SqliteWorld) -> None:
    """EXPLAIN does not show a trigger's statements, so they are explained one by one."""
    body = flush.SQL["trigger"].partition("BEGIN")[2].rpartition("END")[0]
    statements = [part for part in re.split(r";\n", re.sub(r"--.*", "", body)) if part.strip()]
    assert len(statements) == 6
    await world.open()
    with closing(sqlite3.connect(world.path)) as conn:
        for statement in [*statements, flush.SQL["record_one"]]:
            sql = re.sub(r"raise\(ABORT, '[^']*'\)", "1", re.sub(r"NEW\.(\w+)", r":\1", statement))
            names = dict.fromkeys(re.findall(r":([a-z]+)", sql), "[]") or [None] * sql.count("?")
            details = [detail for *_, detail in conn.execute(f"EXPLAIN QUERY PLAN {sql}", names)]
            scans = [one for one in details if one.startswith("SCAN") and "VIRTUAL TABLE" not in one]
            assert scans in ([], ["SCAN p"]), details
