"""The two databases under the fault suite, and every difference between them that its tests know of.

A test asks plain questions in one SQL (`onward_workflows`, `?`, integers of microseconds, JSON as text). On SQLite that is the
file; on PostgreSQL views of these names in the schema `public` show the tables of the schema `onward` so. The connections are
the tests' own, never the library's. Triggers keep every change of a status, so that a second outcome would be seen even if it
were undone. Scenes (scenes.py) use this; which tests run on which database is said here, too.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from tests.postgres.server import server_url

IS_LONG = bool(os.environ.get("ONWARD_LONG"))
"""Everything: every N of every loop, and all tests on both databases."""

KINDS = ("sqlite", "postgres")

ONLY_ON_SQLITE = {
    "a_file_locked_by_a_stranger": "one writer at a time is SQLite's rule; tests/postgres has a stranger's row locks",
    "stops_while_the_database_takes_no_writes": "as above",
    "a_full_disk": "the page limit of a file; tests/postgres raises 53100 in a trigger",
    "a_damaged_file": "there is no file to damage",
    "a_file_that_is_no_database": "there is no file",
    "children_that_outlive_a_killed_worker": "inherited locks of a file; inherited sockets only delay to the lease's end",
}
"""Parts of test names, and why they make no sense on PostgreSQL."""

LONG_ON_POSTGRES = (
    "blocks_its_thread",
    "blocks_the_loop",
    "dies_at_the_end_of_a_graceful_stop",
    "finds_itself_dead_while_the_database_is_busy",
    "however_often_its_workers_die",
    "nothing_of_ended_workflows",
    "random_stops_and_kills",
    "sleeping_workflows_hold",
    "stopped_for_less_than_its_lease",
    "where_every_park_is_replayed",
)
"""Parts of names of tests about the engine more than the store: on PostgreSQL only at full length."""


def kinds_for(test_name: str) -> list[str]:
    """The databases that this test runs on."""
    if any(part in test_name for part in ONLY_ON_SQLITE):
        return ["sqlite"]
    if not IS_LONG and any(part in test_name for part in LONG_ON_POSTGRES):
        return ["sqlite"]
    return list(KINDS)


class Database(Protocol):
    """One database of one scene."""

    kind: str
    url: str
    takeover_lease_s: float
    """Lease of workers that are killed in front of nobody: SQLite's lock files tell a fresh worker at once, while PostgreSQL's
    lock is believed only by observers older than a lease, and a fresh worker waits for the lease's end."""
    recorded: str
    """The question when results were recorded: (workflow, key, time). The time of an entry itself is a lower bound of the
    database's clock, which on PostgreSQL may lie before its body began."""

    @property
    def exists(self) -> bool:
        """Whether the tests' own tables are there."""
        ...

    def dress(self) -> None:
        """Make the tests' own tables, triggers and views, once Onward's tables are there."""
        ...

    def rows(self, text: str, *parameters: object) -> list[Any]:
        """Run a statement: tuples, or bare values where there is one column."""
        ...

    def snapshot(self) -> Any:
        """A block in which all questions see one state; gives what asks them."""
        ...

    def complaints(self) -> list[Any]:
        """What a check of the whole database finds wrong."""
        ...

    def update(self, table: str, assignments: str, where: str = "true") -> None:
        """Change Onward's table `table` (without prefix) behind its back."""
        ...

    def instant(self, at_us: int) -> str:
        """A time as a literal of `update`."""
        ...

    def is_free_of_writers(self) -> bool:
        """Whether nobody, a stopped process perhaps, keeps all others from writing."""
        ...

    def copy(self, name: str, directory: Path) -> Database:
        """Another database with the same contents; nobody may have this one open."""
        ...

    def remove(self) -> None:
        """Close the tests' connection, and leave nothing behind."""
        ...


# ---------------------------------------------------------------------- SQLite

_SQLITE = """
CREATE TABLE bookings (amount INTEGER);
CREATE TABLE audit (n INTEGER PRIMARY KEY, workflow_id TEXT, old TEXT, new TEXT, result TEXT, error TEXT);
CREATE TRIGGER audit_status AFTER UPDATE ON onward_workflows
WHEN OLD.status IS NOT NEW.status OR OLD.result IS NOT NEW.result
BEGIN
    INSERT INTO audit (workflow_id, old, new, result, error) VALUES (NEW.id, OLD.status, NEW.status, NEW.result, NEW.error);
END;
CREATE TRIGGER audit_deletion AFTER DELETE ON onward_journal
BEGIN
    INSERT INTO audit (workflow_id, new) VALUES (OLD.workflow_id, 'journal entry deleted');
END;
"""


class SqliteFile:
    """A file in the scene's directory."""

    kind = "sqlite"
    takeover_lease_s = 15.0
    recorded = "SELECT workflow_id, key, finished_at FROM onward_journal WHERE kind = 'step' AND struck = 0"

    def __init__(self, directory: Path) -> None:
        self.path = directory / "faults.db"
        self.url = f"sqlite:///{self.path}"

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def dress(self) -> None:
        with closing(self.connect()) as conn:
            conn.executescript(_SQLITE)

    def connect(self) -> sqlite3.Connection:
        """A connection in autocommit mode."""
        return sqlite3.connect(self.path, isolation_level=None, timeout=10)

    def rows(self, text: str, *parameters: object) -> list[Any]:
        with closing(self.connect()) as conn:
            return _bare(conn.execute(text, parameters))

    @contextmanager
    def snapshot(self) -> Iterator[Any]:
        with closing(self.connect()) as conn:
            conn.execute("BEGIN")
            yield lambda text, *parameters: _bare(conn.execute(text, parameters))

    def complaints(self) -> list[Any]:
        return [row for row in self.rows("PRAGMA integrity_check") if row != "ok"]

    def update(self, table: str, assignments: str, where: str = "true") -> None:
        self.rows(f"UPDATE onward_{table} SET {assignments} WHERE {where} RETURNING 1")

    def instant(self, at_us: int) -> str:
        return str(at_us)

    def is_free_of_writers(self) -> bool:
        with closing(self.connect()) as conn:
            conn.execute("PRAGMA busy_timeout = 50")
            try:
                conn.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            conn.execute("ROLLBACK")
            return True

    def copy(self, name: str, directory: Path) -> SqliteFile:
        other = SqliteFile(directory)
        shutil.copyfile(self.path, other.path)
        return other

    def remove(self) -> None:
        """The directory goes with the test's."""


# ---------------------------------------------------------------------- PostgreSQL

_POSTGRES = """
CREATE TABLE bookings (amount integer);
CREATE TABLE audit (n bigint GENERATED ALWAYS AS IDENTITY, workflow_id text, old text, new text, result text, error text);
CREATE FUNCTION note_status() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.audit (workflow_id, old, new, result, error)
    VALUES (NEW.id, OLD.status, NEW.status, NEW.result::text, NEW.error::text);
    RETURN NULL;
END $$;
CREATE TRIGGER audit_status AFTER UPDATE ON onward.workflows FOR EACH ROW
WHEN (OLD.status <> NEW.status OR OLD.result::text IS DISTINCT FROM NEW.result::text) EXECUTE FUNCTION note_status();
CREATE FUNCTION note_deletion() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.audit (workflow_id, new) VALUES (OLD.workflow_id, 'journal entry deleted');
    RETURN NULL;
END $$;
CREATE TRIGGER audit_deletion AFTER DELETE ON onward.journal FOR EACH ROW EXECUTE FUNCTION note_deletion();
CREATE TABLE recorded (workflow_id text, seq integer, at timestamptz);
CREATE FUNCTION note_record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.recorded VALUES (NEW.workflow_id, NEW.seq, clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER audit_record AFTER INSERT ON onward.journal FOR EACH ROW EXECUTE FUNCTION note_record();
DO $$ DECLARE
    tab text;
BEGIN
    FOREACH tab IN ARRAY ARRAY['workflows', 'journal', 'mailbox', 'workers', 'step_retries'] LOOP
        EXECUTE format('CREATE VIEW public.onward_%s AS SELECT %s FROM onward.%s', tab, (
            SELECT string_agg(CASE data_type
                WHEN 'timestamp with time zone' THEN format('onward.us(%1$I) AS %1$I', column_name)
                WHEN 'boolean' THEN format('%1$I::integer AS %1$I', column_name)
                WHEN 'json' THEN format('%1$I::text AS %1$I', column_name)
                ELSE format('%I', column_name) END, ', ' ORDER BY ordinal_position)
            FROM information_schema.columns WHERE table_schema = 'onward' AND table_name = tab), tab);
    END LOOP;
END $$;
"""
_numbers = itertools.count(1)
_PATIENCE = 200


class PostgresDatabase:
    """A database of its own in the test server (or in `base_url`'s): its user must be allowed to create databases."""

    kind = "postgres"
    takeover_lease_s = 2.0
    recorded = (
        "SELECT j.workflow_id, j.key, onward.us(r.at) FROM onward.journal AS j"
        " JOIN public.recorded AS r ON r.workflow_id = j.workflow_id AND r.seq = j.seq WHERE j.kind = 'step' AND NOT j.struck"
    )

    def __init__(self, base_url: str | None = None, *, template: str = "template1") -> None:
        self.base_url = base_url or server_url()
        self.name = f"onward_test_{os.getpid()}_{next(_numbers)}"
        self.url = self.url_on(self.base_url)
        self._conn: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()
        self._administer("CREATE DATABASE {} TEMPLATE {}", self.name, template)

    def url_on(self, base_url: str) -> str:
        """This database's URL by another way to its server (a proxy, a pooler)."""
        parts = urlsplit(base_url)
        return f"{parts.scheme}://{parts.netloc}/{self.name}" + (f"?{parts.query}" if parts.query else "")

    @property
    def exists(self) -> bool:
        return self.rows("SELECT to_regclass('public.audit') IS NOT NULL") == [True]

    def dress(self) -> None:
        self.rows(_POSTGRES)

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A new connection in autocommit mode; the caller closes it."""
        return self.connect_to(self.base_url, **options)

    def connect_to(self, base_url: str, **options: Any) -> psycopg.Connection[Any]:
        """The same by another way to the server."""
        ours = "-c search_path=public -c default_transaction_isolation=read\\ committed -c lock_timeout=0"
        options = {"options": ours, **options}
        return psycopg.connect(self.url_on(base_url), autocommit=True, application_name="test", **options)

    def rows(self, text: str, *parameters: object) -> list[Any]:
        with self._lock:
            for _ in range(_PATIENCE):
                try:
                    if self._conn is None:
                        self._conn = self.connect()
                    return _ask(self._conn, text, parameters)
                except psycopg.OperationalError:  # the server is restarting, or has ended the connection
                    self._close()
                    time.sleep(0.05)
            self._conn = self.connect()
            return _ask(self._conn, text, parameters)

    @contextmanager
    def snapshot(self) -> Iterator[Any]:
        with closing(self.connect()) as conn:
            conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            yield lambda text, *parameters: _ask(conn, text, parameters)

    def complaints(self) -> list[Any]:
        return []

    def update(self, table: str, assignments: str, where: str = "true") -> None:
        self.rows(f"UPDATE onward.{table} SET {assignments} WHERE {where}")

    def instant(self, at_us: int) -> str:
        return f"onward.at({at_us})"

    def is_free_of_writers(self) -> bool:
        return True

    def copy(self, name: str, directory: Path) -> PostgresDatabase:
        self.disconnect()
        return PostgresDatabase(self.base_url, template=self.name)

    def disconnect(self) -> None:
        """Close the tests' connection; the next question opens another."""
        with self._lock:
            self._close()

    def move_to(self, base_url: str) -> None:
        """The same database is found on another server from now on."""
        self.disconnect()
        self.base_url, self.url = base_url, self.url_on(base_url)

    def remove(self) -> None:
        self.disconnect()
        self._administer("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name)

    def administer(self, text: str) -> None:
        """Run a statement about this database, whose name stands for {}, from outside of it."""
        self._administer(text, self.name)

    def _administer(self, text: str, *names: str) -> None:
        with psycopg.connect(self.base_url, autocommit=True) as conn:
            conn.execute("SET client_min_messages = warning")
            conn.execute(sql.SQL(text).format(*(sql.Identifier(name) for name in names)))

    def _close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()


def make_database(kind: str, directory: Path) -> Database:
    """A new one."""
    return SqliteFile(directory) if kind == "sqlite" else PostgresDatabase()


def _ask(conn: psycopg.Connection[Any], text: str, parameters: tuple[object, ...]) -> list[Any]:
    cursor = conn.execute(text.replace("?", "%s").encode(), parameters or None)
    return _bare(cursor) if cursor.description else []


def _bare(cursor: Any) -> list[Any]:
    is_single = len(cursor.description or ()) == 1
    return [row[0] if is_single else tuple(row) for row in cursor.fetchall()]
