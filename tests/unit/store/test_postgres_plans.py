"""The hot statements use their indexes, whatever the statistics say: on empty, fresh, large and never-analysed tables."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from onward._store.opening import open_store
from onward._store.postgres.address import parse_address
from onward._store.postgres.database import Database
from tests.postgres.server import drop_schema, new_schema, url_with

STATES = ("empty", "fresh", "analysed small, grown large", "large and analysed", "large and never analysed")
WRITES = (
    "lock_or_refuse", "lock_own_or_refuse", "lock_ending_or_refuse", "lock_rows", "lock_rows_waiting", "insert_entries",
    "record_entries", "record_entry", "read_entries", "note_progress",
    "park_rows", "fail_attempts", "release_rows", "finish_rows", "upsert_retries", "delete_retries", "mark_read",
    "deliver_signals", "insert_workflows", "insert_new_starts", "insert_starts", "find_starts", "insert_waiters", "deliver_known_ends", "cancel_unbegun",
    "request_cancel", "strike_entries", "lock_step_or_refuse",
)  # fmt: skip
CLAIMS = (
    "claim_due",
    "claim_from",
    "claim_only",
    "look_at_everything",
    "next_due",
    "next_due_from",
    "release_not_held",
    "adopt_diverged",
    "next_held_back",
)
READS = (
    "load_histories",
    "read_mail",
    "read_signals",
    "list_final",
    "get_workflow",
    "release_orphans",
    "look_for_orphans",
)
PRUNINGS = (
    "old_roots", "tree", "lock_old", "children_of", "delete_journals", "delete_mail", "delete_waiters", "delete_waiting",
    "delete_step_retries", "delete_workflows",
)  # fmt: skip
FIRST_COLUMNS = {
    "workflows_pkey": "id", "workflows_due": "queue", "workflows_held": "worker", "workflows_newest": "created_at",
    "workflows_children": "parent_id", "workflows_diverged": "next_run_at", "workflows_finished": "finished_at",
    "journal_pkey": "workflow_id", "mailbox_unread": "workflow_id", "mailbox_token": "workflow_id", "mailbox_pkey": "id",
    "waiters_pkey": "target", "waiters_waiting": "waiter", "step_retries_pkey": "workflow_id",
}  # fmt: skip
WALKED = {"release_orphans": ("workflows_held",), "look_for_orphans": ("workflows_held",)}
"""From its first entry: the least id of a worker that holds something."""
OWN = ("workflows", "journal", "mailbox", "waiters", "step_retries")

FILL = """
INSERT INTO {s}.workflows (id, type, queue, priority, status, next_run_at, max_attempts, created_at, updated_at, finished_at, digest,
    seed, payload, parent_id, epoch)
SELECT 'w' || lpad(n::text, 6, '0'), 'flow', CASE WHEN mod(n, 10) = 0 THEN 'other' ELSE 'default' END, mod(n, 3),
    CASE WHEN mod(n, 2) = 0 THEN 'completed' ELSE 'pending' END,
    CASE WHEN mod(n, 2) = 0 THEN NULL ELSE now() + (n - 500) * interval '1 second' END, 5, now(), now(), now(), 'd', 's', '[]',
    CASE WHEN mod(n, 7) = 0 THEN 'w000001' END, 1
FROM generate_series(1, %s) AS n;
"""
ENTRIES = """
INSERT INTO {s}.journal (workflow_id, seq, key, kind, finished_at, result)
SELECT 'w' || lpad(n::text, 6, '0'), k, 'step', 'step', now(), '1' FROM generate_series(1, %s) AS n, generate_series(1, 3) AS k;
"""
MAIL = """
INSERT INTO {s}.mailbox (workflow_id, kind, created_at, token)
SELECT 'w' || lpad(n::text, 6, '0'), 'signal', now(), 't' FROM generate_series(1, %s) AS n;
"""


class Planner:
    """A session pinned as the store's are."""

    def __init__(self, schema: str) -> None:
        self.database = Database(parse_address(url_with(schema=schema)))
        self.conn: psycopg.Connection[Any] = psycopg.connect(**self.database.parameters)
        self.conn.execute(self.database.sql["pin_session"].sql().encode())

    def fill(self, count: int) -> None:
        for text in (FILL, ENTRIES, MAIL):
            self.conn.execute(text.format(s=self.database.address.quoted_schema).encode(), (count,))

    def analyse(self) -> None:
        for table in OWN:
            self.conn.execute(f"ANALYZE {self.database.address.quoted_schema}.{table}".encode())

    def plan(self, name: str) -> str:
        statement = self.database.sql[name]
        self.conn.execute(f"PREPARE one AS {statement.sql()}".encode())
        try:
            arguments = ", ".join(["NULL"] * len(statement.parameters))
            call = f"EXPLAIN EXECUTE one ({arguments})" if arguments else "EXPLAIN EXECUTE one"
            return "\n".join(line for (line,) in self.conn.execute(call.encode()))
        finally:
            self.conn.execute("DEALLOCATE one")


@pytest.fixture(scope="module", params=STATES)
def planner(request: pytest.FixtureRequest) -> Iterator[Planner]:
    """A schema in one of the states."""
    schema = new_schema()

    async def migrate() -> None:
        store = open_store(url_with(schema=schema))
        await store.open()
        await store.close()

    asyncio.run(migrate())
    made = Planner(schema)
    for table in OWN:
        made.conn.execute(f"ALTER TABLE {schema}.{table} SET (autovacuum_enabled = false)".encode())
    match request.param:
        case "fresh":
            made.fill(20)
        case "analysed small, grown large":
            made.analyse()
            made.fill(10_000)
        case "large and analysed":
            made.fill(10_000)
            made.analyse()
        case "large and never analysed":
            made.fill(10_000)
    yield made
    made.conn.close()
    drop_schema(schema)


@pytest.mark.parametrize("name", [*WRITES, *CLAIMS, *READS, *PRUNINGS])
def test_no_statement_scans_a_table_or_hashes_it(planner: Planner, name: str) -> None:
    plan = planner.plan(name)
    for table in OWN:
        assert not re.search(rf"Seq Scan on {table}\b", plan), plan
        assert not re.search(rf"Bitmap Heap Scan on {table}\b", plan), plan
    assert "Hash Join" not in plan, plan
    # An index whose first columns are not given is walked from end to end, as dear as a scan of the table.
    for index, condition in re.findall(r"using (\w+) on .*\n\s*Index Cond: \(+(?:ROW\()?(\w+)", plan):
        assert condition == FIRST_COLUMNS.get(index, condition), plan
    for index in re.findall(r"using (\w+) on .*\n(?!\s*Index Cond)", plan):
        assert index in WALKED.get(name, ()), plan
    assert "Merge Join" not in plan, plan
    assert "Disabled: true" not in plan, plan


@pytest.mark.parametrize("name", ["claim_due", "claim_from"])
def test_a_claim_walks_the_due_index_in_its_order_and_locks_no_more_than_it_takes(planner: Planner, name: str) -> None:
    plan = planner.plan(name)
    found = plan[plan.index("CTE found") : plan.index("CTE due")]
    assert re.search(r"LockRows.*\n\s*->  Index Scan using workflows_due", found), plan
    assert re.search(r"Index Cond: \(\(queue = \$\d+\) AND \(priority = p\w*\.priority\) AND \(next_run_at", found), (
        plan
    )
    assert "Sort" not in found, plan


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("lock_own_or_refuse", "workflows_pkey"),
        ("record_entries", "workflows_pkey"),
        ("record_entry", "workflows_pkey"),
        ("lock_ending_or_refuse", "waiters_pkey"),
        ("finish_rows", "workflows_pkey"),
        ("read_signals", "workflows_held"),
        ("release_not_held", "workflows_held"),
        ("release_orphans", "workflows_held"),
        ("load_histories", "journal_pkey"),
        ("load_histories", "mailbox_unread"),
        ("read_mail", "mailbox_unread"),
        ("next_due", "workflows_due"),
        ("adopt_diverged", "workflows_diverged"),
        ("deliver_known_ends", "mailbox_(unread|token)"),
        ("list_workflows", "workflows_newest"),
        ("list_children", "workflows_children"),
        ("old_roots", "workflows_finished"),
    ],
)
def test_each_uses_its_index(planner: Planner, name: str, index: str) -> None:
    assert re.search(rf"using {index}\b", planner.plan(name)), planner.plan(name)


def test_old_roots_are_read_along_their_index_and_only_those_of_a_page_are_sorted(planner: Planner) -> None:
    """The index knows no ids: without the limit below the sort, each page would read and sort all that are old."""
    plan = planner.plan("old_roots")
    walk = r"(Incremental Sort|Sort).*\n\s*Sort Key: .*\n(\s*Presorted Key: .*\n)?\s*->  Limit (?:(?!Sort).*\n)*?\s*->  Index Scan"
    assert re.search(rf"{walk} using workflows_finished", plan), plan


def test_locks_are_taken_in_order_of_id(planner: Planner) -> None:
    for name in (
        "lock_or_refuse",
        "lock_own_or_refuse",
        "lock_ending_or_refuse",
        "record_entries",
        "lock_rows",
        "lock_rows_waiting",
        "release_not_held",
        "release_orphans",
    ):
        plan = planner.plan(name)
        assert re.search(r"LockRows.*\n\s*->  (Sort|Incremental Sort|Index Scan using workflows_pkey)", plan), plan


@pytest.mark.parametrize("name", ["lock_own_or_refuse", "lock_ending_or_refuse", "record_entries"])
def test_the_rows_of_a_batch_are_found_by_one_walk_along_the_primary_key(planner: Planner, name: str) -> None:
    """Not by a search for each, let alone by comparing each with each."""
    plan = planner.plan(name)
    locked = re.search(
        r"CTE locked\n\s*->  LockRows.*\n\s*->  Index Scan using workflows_pkey.*\n\s*Index Cond: (.*)", plan
    )
    assert locked is not None, plan
    assert re.search(r"id = ANY \(\$\d+(::text\[\])?\)", locked[1]), plan


def test_a_batch_is_joined_with_nothing_but_an_index(planner: Planner) -> None:
    """Never with another set in memory: the work grows with the batch and not with its square."""
    plan = planner.plan("lock_or_refuse")
    locked = plan[plan.index("CTE locked") :]
    assert re.search(r"Nested Loop.*\n\s*->  CTE Scan on wanted.*\n\s*->  Index Scan using workflows_pkey", locked), (
        plan
    )
