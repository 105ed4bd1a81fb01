"""The hot statements use their indexes: nothing that runs often may scan a table."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from onward._store.sqlite import claims, facts, journal, leases, pruning, reads, starts, wakes
from onward._store.sqlite.migrations import known_migrations, split_statements

STATEMENTS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": statement
    for module in (claims, facts, journal, leases, pruning, reads, starts, wakes)
    for name, statement in module.SQL.items()
}
# Whole tables that are small (workers) or asked by people, rarely.
SCANS = {
    "leases.other_workers": {"onward_workers"},
    "leases.forget_dead": {"onward_workers"},
    "reads.list_workers": {"onward_workers"},
    "reads.count_by_status": {"onward_workflows"},
    "pruning.first_mark": {"onward_prunings"},
    "facts.survey_workflows": {"onward_workflows"},
    "facts.count_held": {"onward_workflows"},  # these two a partial index from end to end, see INDEXES
    "facts.sample_diverged": {"onward_workflows"},
    "facts.sample_quarantined": {"onward_workflows"},
    "facts.sample_crashed": {"onward_workflows"},
    "facts.sample_unwakeable": {"onward_workflows"},
    "facts.largest_payloads": {"onward_workflows", "onward_journal"},
}
INDEXES = {
    "claims.due_priorities": "onward_workflows_due (queue=? AND priority=? AND next_run_at<?)",
    "claims.select_due": "onward_workflows_due (queue=? AND priority=? AND next_run_at<?)",
    "claims.next_due": "onward_workflows_due (queue=? AND priority=?",
    "claims.not_held": "onward_workflows_held (worker=?)",
    "claims.next_held_back": "onward_workflows_diverged (next_run_at<?)",
    "claims.adopt_diverged": "onward_workflows_diverged (next_run_at>?)",
    "claims.is_any_diverged": "onward_workflows_diverged (next_run_at>?)",
    "wakes.read_signals": "onward_workflows_held (worker=?)",
    "wakes.read_mail": "onward_mailbox_unread (workflow_id=? AND id>?)",
    "wakes.known_tokens": "(workflow_id=? AND token=?)",
    "claims.load_histories": "onward_mailbox_unread (workflow_id=?)",
    "leases.orphan_workers": "onward_workflows_held",
    "leases.orphan_rows": "onward_workflows_held (worker=?)",
    "reads.list_workflows": "onward_workflows_newest",
    "reads.list_children": "onward_workflows_children (parent_id=?)",
    "facts.count_held": "onward_workflows_held",
    "facts.sample_diverged": "onward_workflows_diverged",
    "facts.count_created": "onward_workflows_newest (created_at>?)",
    "pruning.old_roots": "onward_workflows_finished (",
    "pruning.tree": "onward_workflows_children (parent_id=?)",
    "pruning.is_whole_tree_old": "onward_workflows_children (parent_id=?)",
    "pruning.children_of": "onward_workflows_children (parent_id=?)",
    "pruning.delete_waiters": "onward_waiters_waiting (waiter=?)",
}


@pytest.fixture(scope="module")
def conn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path: Path = tmp_path_factory.mktemp("plans") / "x.db"
    conn = sqlite3.connect(path)
    for migration in known_migrations():
        for statement in split_statements(migration.sql):
            conn.execute(statement)
    yield conn
    conn.close()


def plan(conn: sqlite3.Connection, name: str) -> list[str]:
    sql = STATEMENTS[name]
    params = dict.fromkeys(re.findall(r":([a-z_]+)", sql), "[]")
    return [detail for *_, detail in conn.execute(f"EXPLAIN QUERY PLAN {sql}", params)]


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_no_statement_scans_a_table_of_ours(conn: sqlite3.Connection, name: str) -> None:
    aliases = dict.fromkeys(re.findall(r"onward_[a-z_]+", STATEMENTS[name]))
    aliased = {alias: table for table, alias in re.findall(r"(onward_[a-z_]+) AS ([a-z]+)", STATEMENTS[name])}
    scanned = set()
    for detail in plan(conn, name):
        found = re.match(r"SCAN (\w+)", detail)
        if found is None or "VIRTUAL TABLE" in detail:
            continue
        table = aliased.get(found[1], found[1])
        if table in aliases:
            scanned.add(table)
    assert scanned <= SCANS.get(name, set()), plan(conn, name)


@pytest.mark.parametrize("name", sorted(INDEXES))
def test_a_hot_statement_uses_its_index(conn: sqlite3.Connection, name: str) -> None:
    assert any(INDEXES[name] in detail for detail in plan(conn, name)), plan(conn, name)


@pytest.mark.parametrize(
    "name",
    [
        "claims.select_due",
        "reads.list_workflows",
        "claims.next_due",
        "reads.list_children",
        "pruning.old_roots",
        "pruning.children_of",
    ],
)
def test_an_ordered_statement_takes_its_order_from_the_index(conn: sqlite3.Connection, name: str) -> None:
    assert not any("TEMP B-TREE" in detail for detail in plan(conn, name)), plan(conn, name)


def test_no_statement_builds_an_index_for_itself(conn: sqlite3.Connection) -> None:
    """But for one on what came with the statement itself: what the rows of a batch have in common."""
    built = {name for name in STATEMENTS if any("AUTOMATIC" in detail for detail in plan(conn, name))}
    assert built == {"starts.insert_workflows"}
