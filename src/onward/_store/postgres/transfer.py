"""One schema of a PostgreSQL database as a side of a move to another database; see base.Transfer. Used by `onward copy` alone.

The refusal of writes is made of triggers, which stand on the tables while the schema is fenced or not open yet: they cost nothing
otherwise, and stop every writer there is: old libraries, plain SQL, and transactions that began before. A transaction of the copy
itself says so in the mark, and the triggers let it pass.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import psycopg
from psycopg import errors, sql

from onward._store.postgres.faults import classify
from onward._store.postgres.migrations import applied_migrations, become_owner, known_migrations
from onward._store.postgres.statements import as_json
from onward._store.postgres.upkeep import Connection, ask, ask_for
from onward._store.schema import pending_migrations
from onward._store.statements import json_text
from onward._store.transfer import TABLES, Key, Move, Place, Position, Row, Table, canonical, check_exact, length
from onward.errors import ConfigurationError, SchemaError, StoreImporting, StoreMoved, TransientStoreError

if TYPE_CHECKING:
    from onward._store.postgres.database import Database
    from onward._store.postgres.session import Session

T = TypeVar("T")
PATIENCE_S = 60.0
"""How long open transactions are waited for, again and again for a short time, until the tables can be locked."""
PAUSE_S = 0.5
READ_AHEAD = 50
"""Rows that come from the server at a time."""
_TRIGGER = sql.Identifier("refuse_while_moving")
_position = msgspec.json.Decoder(Position)
_GUARDED = (*(table.name for table in TABLES), "outbox")


async def check_serving(session: Session, database: Database) -> None:
    """Raise StoreMoved or StoreImporting while writes are refused."""
    calls, place = database.whole([database.sql["read_refusal"].bind()])
    refuse_if_moving(database, (await session.run(calls))[place][0])


def refuse_if_moving(database: Database, answer: bytes | None) -> None:
    """The answer of `read_refusal` as an exception."""
    if answer is not None:
        role, url = msgspec.json.decode(answer)
        raise StoreMoved(database.name, url) if role == "source" else StoreImporting(database.name, url)


async def read_moves(conn: Connection, database: Database) -> dict[str, Move]:
    """The marks, by role. Raises psycopg.Error."""
    rows = await ask_for(conn, database, "read_moves", list[tuple[str, str, str, int, int | None, str | None]])
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


class PostgresTransfer:
    """See base.Transfer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._conn: Connection | None = None

    # ------------------------------------------------------------------ what is there

    async def look(self, *, counts: bool = True) -> Place:
        """The marks and what is there."""
        database = self._database

        async def look(conn: Connection) -> Place:
            known, applied = known_migrations(), await applied_migrations(conn, database)
            if pending_migrations(known, applied, database=database.name):
                raise SchemaError(
                    f"{database.name} has no Onward schema, or an old one; run: onward migrate --url {database.name}"
                )
            check_exact(known, applied, database=database.name)
            moves = await read_moves(conn, database)
            counted = await ask_for(conn, database, "count_rows", dict[str, int]) if counts else {}
            around = await ask_for(conn, database, "look_around", tuple[int, int, int, int, int])
            unfinished, running, workers, mail_id, size = around
            identity = await ask(conn, database, "read_identity")
            return Place(
                url=database.name,
                identity=f"server {(identity or b'').decode()}",
                counts=counted,
                unfinished_count=unfinished,
                running_count=running,
                size=size,
                worker_count=workers,
                mail_id=mail_id,
                source=moves.get("source"),
                target=moves.get("target"),
            )

        return await self._transaction(look)

    async def read_rows(self, table: Table, after: Key, *, limit: int, size: int) -> list[Row]:
        """The rows behind a key."""
        parsed = [table.columns.index(name) for name in table.parsed]
        call = self._database.sql[f"export_{table.name}"].bind(
            **dict(zip(("key_one", "key_two"), after, strict=False)), limit=limit
        )
        values = [None if value is None else value.decode() for value in call.values]

        async def read(conn: Connection) -> list[Row]:
            rows: list[Row] = []
            weight = 0
            async with psycopg.AsyncRawServerCursor(conn, "onward_copy") as cursor:
                cursor.itersize = READ_AHEAD
                await cursor.execute(call.statement.sql().encode(), values)
                async for found in cursor:
                    row = list(found)
                    for index in parsed:
                        row[index] = canonical(row[index])
                    rows.append(tuple(row))
                    weight += length(rows[-1])
                    if weight >= size:
                        break
            return rows

        return await self._transaction(read)

    # ------------------------------------------------------------------ the source

    async def fence_source(self, copy_id: str, target_url: str) -> None:
        """End all work here."""

        async def fence(conn: Connection) -> None:
            known = (await read_moves(conn, self._database)).get("source")
            if known is not None:
                self._check_copy(known, copy_id)
                return
            await self._lock_tables(conn)
            await ask(conn, self._database, "end_executions")
            await ask(conn, self._database, "mark_source", copy_id=copy_id, url=target_url)
            await self._refuse_writes(conn, "source", target_url)

        await self._locking(fence)

    async def note_end(self, copy_id: str) -> None:
        """Note that the target is open."""
        await self._transaction(lambda conn: ask(conn, self._database, "note_end", copy_id=copy_id))

    async def unfence_source(self, copy_id: str) -> None:
        """Accept writes again."""

        async def unfence(conn: Connection) -> None:
            known = (await read_moves(conn, self._database)).get("source")
            if known is None:
                return
            self._check_copy(known, copy_id)
            await self._accept_writes(conn)
            await ask(conn, self._database, "forget_source", copy_id=copy_id)

        await self._locking(unfence)

    # ------------------------------------------------------------------ the target

    async def mark_target(self, copy_id: str, source_url: str) -> None:
        """Take an empty schema for a copy."""
        database = self._database

        async def mark(conn: Connection) -> None:
            known = (await read_moves(conn, self._database)).get("target")
            if known is not None and known.copy_id == copy_id:
                return
            await self._lock_tables(conn)
            if not await ask_for(conn, database, "is_empty", bool):
                raise ConfigurationError(f"{database.name} is not empty")
            if await ask(conn, database, "mark_target", copy_id=copy_id, url=source_url) is None:
                raise ConfigurationError(f"{database.name} is the target of another copy")
            await self._refuse_writes(conn, "target", source_url)

        await self._locking(mark)

    async def write_rows(
        self, copy_id: str, table: Table, rows: Sequence[Row], *, before: Position | None, after: Position
    ) -> None:
        """Write a batch and move the position."""
        database = self._database
        named = as_json([dict(zip(table.columns, row, strict=True)) for row in rows])

        async def write(conn: Connection) -> None:
            was = None if before is None else json_text(before)
            if await ask(conn, database, "begin_writing", copy_id=copy_id, before=was) is None:
                raise ConfigurationError(self._disturbed())
            if rows:
                await ask(conn, database, f"import_{table.name}", rows=named)
            await ask(conn, database, "end_writing", after=json_text(after))

        await self._transaction(write)

    async def open_target(self, copy_id: str, mail_id: int) -> None:
        """Accept writes."""

        async def end(conn: Connection) -> None:
            known = (await read_moves(conn, self._database)).get("target")
            if known is not None and known.copy_id == copy_id and known.ended_at is not None:
                return
            if await ask(conn, self._database, "end_target", copy_id=copy_id) is None:
                raise ConfigurationError(self._disturbed())
            await self._accept_writes(conn)
            await ask(conn, self._database, "raise_mail_ids", id=mail_id)

        await self._locking(end)

    async def empty_target(self, copy_id: str) -> None:
        """Delete what was copied, and the mark."""

        async def empty(conn: Connection) -> None:
            if (await read_moves(conn, self._database)).get("target") is None:
                return
            if await ask(conn, self._database, "forget_target", copy_id=copy_id) is None:
                raise ConfigurationError(f"{self._database.name} is open, or the target of another copy")
            await self._accept_writes(conn)
            await ask(conn, self._database, "empty_tables")

        await self._locking(empty)

    # ------------------------------------------------------------------ locks and triggers

    async def _lock_tables(self, conn: Connection) -> None:
        """Be alone with the tables. What a caller's open transaction has sent waits in `outbox` and will want workflows at its
        commit: it is not waited for while those are locked."""
        for name in ("lock_workflows", "lock_outbox", "lock_others"):
            await ask(conn, self._database, name)

    async def _refuse_writes(self, conn: Connection, role: str, url: str) -> None:
        for name, events in self._guarded():
            await conn.execute(
                sql.SQL(
                    "CREATE TRIGGER {} BEFORE {} ON {} FOR EACH STATEMENT EXECUTE FUNCTION {}({}, {})"
                ).format(_TRIGGER, sql.SQL(events), name, self._placed("refuse_while_moving"), role, url)
            )  # fmt: skip

    async def _accept_writes(self, conn: Connection) -> None:
        for name, _ in self._guarded():
            await conn.execute(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(_TRIGGER, name))

    def _guarded(self) -> list[tuple[sql.Identifier, Any]]:
        """Tables and events; a worker that ends may take its row away."""
        all_events = "INSERT OR UPDATE OR DELETE OR TRUNCATE"
        return [
            *((self._placed(name), all_events) for name in _GUARDED),
            (self._placed("workers"), "INSERT OR UPDATE"),
        ]

    def _placed(self, name: str) -> sql.Identifier:
        return sql.Identifier(self._database.address.schema, name)

    # ------------------------------------------------------------------ marks

    def _check_copy(self, known: Move, copy_id: str) -> None:
        if known.copy_id != copy_id:
            raise ConfigurationError(f"{self._database.name} was moved to {known.url} already, by another copy")

    def _disturbed(self) -> str:
        return f"another `onward copy` is at work on {self._database.name}, or this one was aborted there"

    # ------------------------------------------------------------------ transactions

    async def _locking(self, body: Callable[[Connection], Awaitable[None]]) -> None:
        """A transaction that locks tables: given up when that takes long, because all others wait behind it, and begun again."""

        async def locking(conn: Connection) -> None:
            await ask(conn, self._database, "limit_moving_wait")
            await body(conn)

        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._transaction(locking)
            except TransientStoreError as error:
                if not isinstance(error.__cause__, (errors.LockNotAvailable, errors.DeadlockDetected)):
                    raise
                if time.monotonic() > give_up_at:
                    raise TransientStoreError(
                        f"{self._database.name}: the tables cannot be locked: some transaction that uses them stays open; "
                        "nothing was changed. End it (`onward doctor` lists long ones), or try again later"
                    ) from error
            await asyncio.sleep(PAUSE_S)

    async def _transaction(self, body: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            conn = await self._connection()
            async with conn.transaction():
                await become_owner(conn, self._database.address.schema)
                await ask(conn, self._database, "pin_transaction")
                return await body(conn)
        except psycopg.Error as error:
            raise classify(error, database=self._database.name, committing=True) from error

    async def _connection(self) -> Connection:
        conn = self._conn
        if conn is None or conn.closed:
            conn = self._conn = await self._database.connect()
        return conn

    async def close(self) -> None:
        """Close the connection."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()
