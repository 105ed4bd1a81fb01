"""What a caller's transaction runs on PostgreSQL uses its indexes, whatever the statistics and the caller's settings say.

The statements of the outbox's trigger are seen through `auto_explain`, as they run.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from onward import Client, Signal
from onward._store.opening import open_store
from tests.postgres.server import connection, drop_schema, new_schema, server_url, url_with

approved = Signal("approved", bool)
TABLES = ("workflows", "mailbox", "waiters", "outbox")
STATES = ("nearly empty", "analysed empty, grown large", "large and analysed", "large and never analysed")
FILL = """
INSERT INTO {s}.workflows (id, type, queue, priority, status, max_attempts, created_at, updated_at, next_run_at, digest, seed, payload,
                           epoch, parent_id)
SELECT 'w' || n, 'flow', 'default', 0, 'pending', 5, now(), now(), now(), 'd', 's', '[]', mod(n, 2), 'w1'
FROM generate_series(1, {n}) AS n;
INSERT INTO {s}.mailbox (workflow_id, kind, created_at, token)
SELECT 'w' || n, 'signal', now(), 't' FROM generate_series(1, {n}) AS n;
INSERT INTO {s}.waiters (target, waiter, created_at) SELECT 'w' || n, 'w2', now() FROM generate_series(1, {n}) AS n;
INSERT INTO {s}.outbox (transaction_id, workflow_id, kind) SELECT n, 'w' || n, 'signal' FROM generate_series(1, {n}) AS n;
"""


@pytest.fixture(params=STATES)
def schema(request: pytest.FixtureRequest) -> Iterator[str]:
    """A schema in one of the states; with rows in the outbox that are long dead, or somebody else's."""
    name = new_schema()

    async def migrate() -> None:
        store = open_store(url_with(schema=name))
        await store.open()
        await store.close()

    asyncio.run(migrate())
    with connection() as conn:
        for table in TABLES:
            conn.execute(f"ALTER TABLE {name}.{table} SET (autovacuum_enabled = false)".encode())
        conn.execute(f"ALTER TABLE {name}.outbox DISABLE TRIGGER deliver_outbox".encode())
        count = 10 if request.param == "nearly empty" else 20_000
        words = request.param.split()
        if words[0] == "analysed":
            conn.execute("; ".join(f"ANALYZE {name}.{table}" for table in TABLES).encode())
        conn.execute(FILL.format(s=name, n=count).encode())
        if words[-1] == "analysed" and "never" not in words:
            conn.execute("; ".join(f"ANALYZE {name}.{table}" for table in TABLES).encode())
        conn.execute(f"ALTER TABLE {name}.outbox ENABLE TRIGGER deliver_outbox".encode())
    yield name
    drop_schema(name)


def plans_of(conn: psycopg.Connection[Any], schema: str) -> list[str]:
    """The plans of everything that a transaction with signals and cancels runs, its commit included."""
    notices: list[str] = []
    try:
        conn.execute("LOAD 'auto_explain'")
    except psycopg.Error as error:
        pytest.skip(f"this server does not let us see the plans: {error}")
    for setting in ("log_min_duration = 0", "log_nested_statements = on", "log_level = 'notice'"):
        conn.execute(f"SET auto_explain.{setting}".encode())
    conn.commit()
    conn.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    with Client(url_with(schema=schema)) as client:
        for workflow_id in ("w4", "w5"):  # one that never ran, and one that did
            client.signal(workflow_id, approved, True, tx=conn)
            client.handle(workflow_id).cancel(tx=conn)
        conn.commit()
    return [notice for notice in notices if "plan:" in notice]


def test_signals_cancels_and_their_delivery_scan_no_table(schema: str) -> None:
    with psycopg.connect(server_url()) as conn:
        plans = plans_of(conn, schema)
    assert any("deliver_outbox" in plan or "LockRows" in plan for plan in plans)
    for plan in plans:
        is_inside = "NEW." in plan or "LockRows" in plan
        for table in TABLES:
            assert not re.search(rf"Seq Scan on {schema}\.{table}\b|Seq Scan on {table}\b", plan), plan
            if is_inside:
                assert not re.search(rf"Bitmap Heap Scan on {table}\b", plan), plan
        for index in re.findall(r"Index (?:Only )?Scan using (?:\w+) on (?:\w+)[^\n]*\n(\s*\S[^\n]*)", plan):
            assert "Index Cond" in index, plan
