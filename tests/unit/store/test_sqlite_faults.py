"""What SQLite refuses, and as what it reaches the caller."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from onward._store.opening import open_store
from onward._store.operations import APPLIED, JournalOp, Op, StartOp
from onward._store.sqlite import flush
from onward._store.sqlite.connection import connect
from onward._store.sqlite.database import Database
from onward._store.sqlite.faults import classify
from onward._store.sqlite.store import SqliteStore
from onward.errors import FatalStoreError, OutcomeUnknown, StoreConflict, StoreError, TransientStoreError
from tests.conformance.support import SqliteWorld, entry, new, row, start, started_and_claimed

KINDS: list[tuple[int, bool, type[StoreError]]] = [
    (sqlite3.SQLITE_BUSY, False, TransientStoreError),
    (sqlite3.SQLITE_BUSY_SNAPSHOT, False, TransientStoreError),
    (sqlite3.SQLITE_BUSY, True, TransientStoreError),
    (sqlite3.SQLITE_LOCKED, False, TransientStoreError),
    (sqlite3.SQLITE_INTERRUPT, False, TransientStoreError),
    (sqlite3.SQLITE_IOERR_READ, False, TransientStoreError),
    (sqlite3.SQLITE_IOERR_FSYNC, True, OutcomeUnknown),
    (sqlite3.SQLITE_IOERR_WRITE, True, OutcomeUnknown),
    (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, False, StoreConflict),
    (sqlite3.SQLITE_CONSTRAINT_CHECK, False, StoreConflict),
    (sqlite3.SQLITE_MISMATCH, False, StoreConflict),
    (sqlite3.SQLITE_TOOBIG, False, StoreConflict),
    (sqlite3.SQLITE_FULL, False, FatalStoreError),
    (sqlite3.SQLITE_FULL, True, FatalStoreError),
    (sqlite3.SQLITE_READONLY_DBMOVED, False, FatalStoreError),
    (sqlite3.SQLITE_CORRUPT, False, FatalStoreError),
    (sqlite3.SQLITE_NOTADB, False, FatalStoreError),
    (sqlite3.SQLITE_CANTOPEN, False, FatalStoreError),
    (sqlite3.SQLITE_PERM, False, FatalStoreError),
    (sqlite3.SQLITE_ERROR, False, FatalStoreError),
    (sqlite3.SQLITE_MISUSE, False, FatalStoreError),
]


@pytest.mark.parametrize(("code", "committing", "kind"), KINDS)
def test_every_result_code_is_one_of_four_kinds(code: int, committing: bool, kind: type[StoreError]) -> None:
    error = sqlite3.OperationalError("text that decides nothing: database is locked")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "SQLITE_X"
    found = classify(error, database="/x.db", committing=committing)
    assert type(found) is kind
    assert "/x.db: SQLITE_X" in str(found)


def test_an_error_without_a_code_is_fatal() -> None:
    assert type(classify(sqlite3.ProgrammingError("closed"), database="x")) is FatalStoreError


async def test_a_lock_held_by_another_process_is_transient_and_nothing_is_written(world: SqliteWorld) -> None:
    await world.open()
    store = SqliteStore(world.path)
    store._database._busy_s = 0.05
    await store.open()
    other = connect(world.path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransientStoreError, match="write lock"):
        await store.write([StartOp(new())])
    other.execute("ROLLBACK")
    other.close()
    assert await store.get("a") is None
    await start(store)
    await store.close()


async def test_reads_go_on_while_another_process_writes(world: SqliteWorld) -> None:
    store = await world.open()
    await start(store)
    other = connect(world.path)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM onward_workflows")
    assert (await row(store)).status == "pending"
    other.execute("ROLLBACK")
    other.close()


async def test_a_full_disk_is_fatal_says_so_and_is_over_once_there_is_space(world: SqliteWorld) -> None:
    store = await world.open()
    assert isinstance(store, SqliteStore)
    await start(store)
    [pages] = await store._writer.call(lambda conn: conn.execute("PRAGMA page_count").fetchone())
    await store._writer.call(lambda conn: conn.execute(f"PRAGMA max_page_count = {pages}").fetchall())
    batch: list[Op] = [StartOp(new(f"x{n}", payload=f'"{"x" * 5000}"')) for n in range(20)]
    with pytest.raises(FatalStoreError, match="disk is full"):
        await store.write(batch)
    assert await store.counts() == {"pending": 1}
    assert len(await store.write(batch)) == 20  # a new connection has no limit


async def test_a_read_only_file_is_fatal_with_the_cure(world: SqliteWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await start(await world.open())
    await world.close()
    real = Database.connect_writer

    def read_only(self: Database, *, create: bool = False) -> sqlite3.Connection:
        conn = real(self)
        conn.execute("PRAGMA query_only = ON")  # tests may run as root, whom file modes do not stop
        return conn

    monkeypatch.setattr(Database, "connect_writer", read_only)
    store = await world.open()
    with pytest.raises(FatalStoreError, match=r"read-only: make both writable"):
        await store.write([StartOp(new("b"))])
    assert (await row(store)).id == "a"


@pytest.mark.parametrize("where", ["header", "pages"])
async def test_a_damaged_file_is_fatal_with_the_cure(world: SqliteWorld, where: str) -> None:
    store = await world.open()
    for number in range(300):
        await start(store, f"x{number}", payload=f'"{"y" * 500}"')
    await world.close()
    data = bytearray(world.path.read_bytes())
    if where == "header":
        data[:100] = b"this is not a database".ljust(100, b"!")
    else:
        data[4096 * 2 :] = b"\xff" * (len(data) - 4096 * 2)
    world.path.write_bytes(data)
    with pytest.raises(FatalStoreError, match=r"not an SQLite database|damaged"):
        again = await world.open()
        await again.counts()


async def test_a_dropped_table_is_a_fatal_error_and_no_crash(world: SqliteWorld) -> None:
    store = await world.open()
    conn = sqlite3.connect(world.path)
    conn.execute("DROP VIEW onward_overview")
    conn.execute("DROP TABLE onward_workflows")
    conn.commit()
    conn.close()
    with pytest.raises(FatalStoreError, match="no such table"):
        await store.get("a")


@pytest.mark.parametrize("way", ["one entry", "quick flush", "general"])
async def test_an_error_of_the_commit_itself_leaves_the_outcome_unknown_and_a_retry_decides(
    tmp_path: Path, way: str
) -> None:
    commits = {"one entry": flush.SQL["record_one"], "quick flush": flush.SQL["flush"], "general": "COMMIT"}

    class Reply(sqlite3.Connection):
        """Loses the reply of one COMMIT."""

        is_armed = False

        def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:
            cursor = super().execute(sql, parameters)  # type: ignore[arg-type]
            if sql == commits[way] and Reply.is_armed:
                Reply.is_armed = False
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
                raise error
            return cursor

    store = SqliteStore(tmp_path / "x.db")
    store._writer._connect = lambda: connect(store._database.path, create=True, factory=Reply)
    await store.open()
    leases = store.leases()
    from tests.conformance.support import worker_row

    leases.register(worker_row("w1"), 10**9)
    fence = await started_and_claimed(store)
    Reply.is_armed = True
    batch: list[Op] = [JournalOp(fence, (entry(1),), settled=("x",) if way == "general" else ())]
    if way == "quick flush":
        batch.append(JournalOp(fence, (entry(2),)))
    with pytest.raises(OutcomeUnknown, match="look before writing again"):
        await store.write(batch)
    assert await store.write(batch, retry=True) == [APPLIED] * len(batch)
    assert [found.seq for found in await store.journal("a")] == [1, 2][: len(batch)]
    leases.close()
    await store.close()


async def test_a_file_that_is_gone_is_not_made_anew_by_a_reader(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/x.db")
    await store.open()
    (tmp_path / "x.db").unlink()
    with pytest.raises(FatalStoreError, match="cannot be opened"):
        await store.get("a")
    assert not (tmp_path / "x.db").exists()
    await store.close()
