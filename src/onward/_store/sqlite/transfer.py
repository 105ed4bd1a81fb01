"""One SQLite file as a side of a move to another database; see base.Transfer. Used by `onward copy` alone.

The refusal of writes is made of triggers, which stand in the file while it is fenced or not open yet: they cost nothing
otherwise, and stop every writer there is, old libraries and plain SQL included. A file that is being written by the copy says so
in its mark, inside the very transaction, and the triggers let that pass.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from onward._store.schema import AppliedMigration
from onward._store.sqlite.connection import check_place
from onward._store.sqlite.database import Database
from onward._store.sqlite.faults import IMPORTING, MOVED, classify
from onward._store.sqlite.migrations import applied_migrations, check_applied, check_exists, known_migrations, url_of
from onward._store.sqlite.pruning import SQL as PRUNE
from onward._store.statements import json_text, load_statements
from onward._store.transfer import TABLES, Key, Move, Place, Position, Row, Table, canonical, check_exact, length
from onward.errors import ConfigurationError, StoreImporting, StoreMoved

T = TypeVar("T")
SQL = load_statements("onward._store.sqlite", "transfer")
_moves = msgspec.json.Decoder(list[tuple[str, str, str, int, int | None, str | None]])
_position = msgspec.json.Decoder(Position)
_PASSES = "EXISTS (SELECT 1 FROM onward_moving WHERE is_writing)"


def check_serving(conn: sqlite3.Connection, database: Database) -> None:
    """Raise StoreMoved or StoreImporting while writes are refused."""
    row = conn.execute(SQL["read_refusal"]).fetchone()
    if row is not None:
        role, url = row
        raise StoreMoved(url_of(database), url) if role == "source" else StoreImporting(url_of(database), url)


class SqliteTransfer:
    """See base.Transfer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._conn: sqlite3.Connection | None = None

    # ------------------------------------------------------------------ what is there

    async def look(self, *, counts: bool = True) -> Place:
        """The marks and what is there."""
        return await asyncio.to_thread(self._look, counts=counts)

    def _look(self, *, counts: bool) -> Place:
        database = self._database
        check_place(database.path, create=False)
        check_exists(database)
        conn = self._connection()
        try:
            _check_schema(conn, database)
            moves = read_moves(conn)
            counted = conn.execute(SQL["count_rows"]).fetchone()[0] if counts else "{}"
            around = conn.execute(SQL["look_around"], {"now": database.now_us()}).fetchone()[0]
        except sqlite3.Error as error:
            raise classify(error, database=database.name) from error
        unfinished, running, workers, mail_id, size = msgspec.json.decode(around)
        stat = database.path.stat()
        return Place(
            url=url_of(database),
            identity=f"file {stat.st_dev}:{stat.st_ino}",
            counts=msgspec.json.decode(counted),
            unfinished_count=unfinished,
            running_count=running,
            size=size,
            worker_count=workers,
            mail_id=mail_id,
            source=moves.get("source"),
            target=moves.get("target"),
        )

    async def read_rows(self, table: Table, after: Key, *, limit: int, size: int) -> list[Row]:
        """The rows behind a key."""
        return await asyncio.to_thread(self._read_rows, table, after, limit, size)

    def _read_rows(self, table: Table, after: Key, limit: int, size: int) -> list[Row]:
        flags = [table.columns.index(name) for name in table.flags]
        parsed = [table.columns.index(name) for name in table.parsed]
        params = {**dict(zip(("key_one", "key_two"), after, strict=False)), "limit": limit}
        rows: list[Row] = []
        try:
            cursor = self._connection().execute(SQL[f"export_{table.name}"], params)
            for found in cursor:
                row = list(found)
                for index in flags:
                    row[index] = bool(row[index])
                for index in parsed:
                    row[index] = canonical(row[index])
                rows.append(tuple(row))
                size -= length(rows[-1])
                if size <= 0:
                    break
            cursor.close()
        except sqlite3.Error as error:
            raise classify(error, database=self._database.name) from error
        return rows

    # ------------------------------------------------------------------ the source

    async def fence_source(self, copy_id: str, target_url: str) -> None:
        """End all work here."""

        def fence(conn: sqlite3.Connection, now: int) -> None:
            known = read_moves(conn).get("source")
            if known is not None:
                _check_copy(known, copy_id, f"{url_of(self._database)} was moved to {known.url} already")
                return
            _end_prunings(conn)
            conn.execute(SQL["end_executions"], {"now": now})
            conn.execute(SQL["mark_source"], {"copy_id": copy_id, "url": target_url, "now": now})
            _refuse_writes(conn, MOVED, target_url)

        await self._write("fence", fence)

    async def note_end(self, copy_id: str) -> None:
        """Note that the target is open."""
        await self._write("note", lambda conn, now: conn.execute(SQL["note_end"], {"copy_id": copy_id, "now": now}))

    async def unfence_source(self, copy_id: str) -> None:
        """Accept writes again."""

        def unfence(conn: sqlite3.Connection, now: int) -> None:
            known = read_moves(conn).get("source")
            if known is None:
                return
            _check_copy(known, copy_id, f"{url_of(self._database)} was moved to {known.url}")
            _accept_writes(conn)
            conn.execute(SQL["forget_source"], {"copy_id": copy_id})

        await self._write("unfence", unfence)

    # ------------------------------------------------------------------ the target

    async def mark_target(self, copy_id: str, source_url: str) -> None:
        """Take an empty file for a copy."""

        def mark(conn: sqlite3.Connection, now: int) -> None:
            known = read_moves(conn).get("target")
            if known is not None and known.copy_id == copy_id:
                return
            if not conn.execute(SQL["is_empty"]).fetchone()[0]:
                raise ConfigurationError(f"{url_of(self._database)} is not empty")
            params = {"copy_id": copy_id, "url": source_url, "now": now}
            if conn.execute(SQL["mark_target"], params).rowcount != 1:
                raise ConfigurationError(f"{url_of(self._database)} is the target of another copy")
            _refuse_writes(conn, IMPORTING, source_url)

        await self._write("mark", mark)

    async def write_rows(
        self, copy_id: str, table: Table, rows: Sequence[Row], *, before: Position | None, after: Position
    ) -> None:
        """Write a batch and move the position."""

        def write(conn: sqlite3.Connection, now: int) -> None:
            was = None if before is None else json_text(before)
            if conn.execute(SQL["begin_writing"], {"copy_id": copy_id, "before": was}).rowcount != 1:
                raise ConfigurationError(_disturbed(self._database))
            conn.executemany(SQL[f"import_{table.name}"], rows)
            conn.execute(SQL["end_writing"], {"after": json_text(after)})

        await self._write("copy", write)

    async def open_target(self, copy_id: str, mail_id: int) -> None:
        """Accept writes."""

        def end(conn: sqlite3.Connection, now: int) -> None:
            known = read_moves(conn).get("target")
            if known is not None and known.copy_id == copy_id and known.ended_at is not None:
                return
            if conn.execute(SQL["end_target"], {"copy_id": copy_id, "now": now}).rowcount != 1:
                raise ConfigurationError(_disturbed(self._database))
            _accept_writes(conn)
            if mail_id and conn.execute(SQL["raise_mail_ids"], {"id": mail_id}).rowcount == 0:
                conn.execute(SQL["begin_mail_ids"], {"id": mail_id})

        await self._write("open", end)

    async def empty_target(self, copy_id: str) -> None:
        """Delete what was copied, and the mark."""

        def empty(conn: sqlite3.Connection, now: int) -> None:
            known = read_moves(conn).get("target")
            if known is None:
                return
            if conn.execute(SQL["forget_target"], {"copy_id": copy_id}).rowcount != 1:
                raise ConfigurationError(f"{url_of(self._database)} is open, or the target of another copy")
            _accept_writes(conn)
            for table in TABLES:
                conn.execute(SQL[f"empty_{table.name}"])

        await self._write("empty", empty)

    # ------------------------------------------------------------------ the connection

    async def close(self) -> None:
        """Close the connection."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await asyncio.to_thread(conn.close)

    def _connection(self) -> sqlite3.Connection:
        if self._conn is None:
            self._conn = self._database.connect_writer()
        return self._conn

    async def _write(self, point: str, body: Callable[[sqlite3.Connection, int], Any]) -> None:
        await asyncio.to_thread(lambda: self._database.transaction(self._connection(), point, body))


def _check_schema(conn: sqlite3.Connection, database: Database) -> None:
    known = known_migrations()
    applied: list[AppliedMigration] = database.patiently(lambda: applied_migrations(conn))
    check_applied(known, applied, database)
    check_exact(known, applied, database=database.name)


def read_moves(conn: sqlite3.Connection) -> dict[str, Move]:
    """The marks, by role."""
    rows = _moves.decode(conn.execute(SQL["read_moves"]).fetchone()[0])
    return {
        role: Move(
            copy_id=copy_id,
            url=url,
            began_at=began_at,
            ended_at=ended_at,
            position=None if position is None else _position.decode(position),
        )
        for role, copy_id, url, began_at, ended_at, position in rows
    }


def _check_copy(known: Move, copy_id: str, text: str) -> None:
    if known.copy_id != copy_id:
        raise ConfigurationError(f"{text}, by another copy")


def _disturbed(database: Database) -> str:
    return f"another `onward copy` is at work on {url_of(database)}, or this one was aborted there"


def _end_prunings(conn: sqlite3.Connection) -> None:
    ids = conn.execute(SQL["begun_prunings"]).fetchone()[0]
    for name in ("delete_journals", "delete_mail", "delete_waiters", "delete_retries", "delete_workflows"):
        conn.execute(PRUNE[name], {"ids": ids})
    conn.execute(SQL["forget_prunings"])


def _triggers() -> list[tuple[str, str, str]]:
    """(name, event, table) of each."""
    guarded = [(f"onward_{table.name}", event) for table in TABLES for event in ("INSERT", "UPDATE", "DELETE")]
    guarded += [("onward_workers", event) for event in ("INSERT", "UPDATE")]  # one that ends may take its row away
    return [(f"{table}_{event.lower()}_while_moving", event, table) for table, event in guarded]


def _refuse_writes(conn: sqlite3.Connection, role: str, url: str) -> None:
    text = f"{role}{url}".replace("'", "''")
    for name, event, table in _triggers():
        conn.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} WHEN NOT {_PASSES} BEGIN SELECT RAISE(ABORT, '{text}'); END"
        )


def _accept_writes(conn: sqlite3.Connection) -> None:
    for name, _, _ in _triggers():
        conn.execute(f"DROP TRIGGER IF EXISTS {name}")
