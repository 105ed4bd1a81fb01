"""Uninstalling: Onward's tables go, and its lock files; the application's things stay, and living workers are heeded."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from onward._store.opening import open_store
from onward._store.sqlite.migrations import own_objects, schema_sql
from onward.errors import OnwardError, SchemaError, StoreError
from tests.conformance.support import SECOND, SqliteWorld, start, worker_row

OTHERS = (
    "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)",
    "CREATE TABLE onward_notes (text TEXT)",  # the name looks like ours
    "CREATE INDEX onward_notes_text ON onward_notes (text)",
    "CREATE VIEW user_names AS SELECT name FROM users",
    "CREATE TRIGGER noted AFTER INSERT ON users BEGIN INSERT INTO onward_notes VALUES (new.name); END",
)


def objects(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as conn:
        return {name for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE name NOT GLOB 'sqlite_*'")}


async def made(world: SqliteWorld) -> None:
    store = await world.open()
    await start(store)
    await store.close()


async def test_ours_goes_and_the_applications_stays(world: SqliteWorld) -> None:
    await made(world)
    with closing(sqlite3.connect(world.path)) as conn, conn:
        for statement in OTHERS:
            conn.execute(statement)
        conn.execute("INSERT INTO users (name) VALUES ('Ann')")
    removal = await open_store(world.url()).drop_schema()
    assert set(removal.removed) == {name for name, (kind, _) in own_objects().items() if kind in ("table", "view")}
    assert not removal.is_empty
    assert objects(world.path) == {"users", "onward_notes", "onward_notes_text", "user_names", "noted"}
    with closing(sqlite3.connect(world.path)) as conn, conn:
        conn.execute("INSERT INTO users (name) VALUES ('Bob')")
        assert conn.execute("SELECT text FROM onward_notes").fetchall() == [("Ann",), ("Bob",)]


async def test_a_file_of_onward_alone_is_empty_afterwards_and_can_be_used_anew(world: SqliteWorld) -> None:
    await made(world)
    removal = await open_store(world.url()).drop_schema()
    assert removal.is_empty
    assert objects(world.path) == set()
    await made(world)
    assert "onward_workflows" in objects(world.path)


async def test_without_a_schema_there_is_nothing_to_do_and_the_file_stays_as_it_is(world: SqliteWorld) -> None:
    with closing(sqlite3.connect(world.path)) as conn, conn:
        conn.execute("CREATE TABLE mine (x)")
    before = world.path.read_bytes()
    removal = await open_store(world.url()).drop_schema()
    assert (removal.removed, removal.alive) == ((), ())
    assert world.path.read_bytes() == before


async def test_a_missing_file_is_an_error_and_stays_missing(world: SqliteWorld) -> None:
    with pytest.raises(SchemaError, match="there is no database"):
        await open_store(world.url()).drop_schema()
    assert list(world.tmp_path.iterdir()) == []


async def test_living_workers_are_named_and_nothing_is_removed(world: SqliteWorld) -> None:
    store = await world.open()
    world.worker(store, "w1")
    world.clock.advance(3600)  # its lease is long over, but its lock proves that it lives
    before = objects(world.path)
    removal = await open_store(world.url(), world.clock).drop_schema()
    assert [worker.id for worker in removal.alive] == ["w1"]
    assert removal.removed == ()
    assert objects(world.path) == before
    assert (world.tmp_path / "onward.db-workers" / "w1.lock").exists()


async def test_without_a_lock_file_the_lease_decides_who_lives(world: SqliteWorld) -> None:
    store = await world.open()
    world.worker(store, "w1", lease_s=15)
    (world.tmp_path / "onward.db-workers" / "w1.lock").unlink()
    assert (await open_store(world.url(), world.clock).drop_schema()).alive
    world.clock.advance(16)
    assert (await open_store(world.url(), world.clock).drop_schema()).removed


async def test_killed_workers_are_no_hindrance_and_their_lock_files_go(world: SqliteWorld) -> None:
    store = await world.open()
    world.worker(store, "w1", lease_s=1000).close()
    assert (world.tmp_path / "onward.db-workers" / "w1.lock").exists()
    await store.close()
    assert (await open_store(world.url(), world.clock).drop_schema()).removed
    assert list(world.tmp_path.iterdir()) == [world.path]


async def test_by_force_it_goes_even_under_a_living_worker(world: SqliteWorld) -> None:
    store = await world.open()
    leases = world.worker(store, "w1")
    assert (await open_store(world.url(), world.clock).drop_schema(force=True)).removed
    assert objects(world.path) == set()
    with pytest.raises(StoreError):
        leases.renew("w1", 15 * SECOND)


async def test_a_strangers_file_among_the_lock_files_stays(world: SqliteWorld) -> None:
    await made(world)
    directory = world.tmp_path / "onward.db-workers"
    directory.mkdir(exist_ok=True)
    (directory / "left.lock").write_text("")
    (directory / "note.txt").write_text("mine")
    await open_store(world.url()).drop_schema()
    assert [file.name for file in directory.iterdir()] == ["note.txt"]


async def test_a_schema_that_a_newer_library_made_is_left_to_that_library(world: SqliteWorld) -> None:
    await made(world)
    with closing(sqlite3.connect(world.path)) as conn, conn:
        conn.execute("INSERT INTO onward_migrations VALUES (900, 'tomorrow', '0.0.1', 'c', 0, '99.0.0')")
    before = objects(world.path)
    with pytest.raises(SchemaError, match=r"900 \(tomorrow\)"):
        await open_store(world.url()).drop_schema()
    assert objects(world.path) == before


async def test_a_removal_that_fails_half_way_leaves_everything(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(world)
    before = objects(world.path)
    monkeypatch.setattr(
        "onward._store.sqlite.removal._own", lambda conn: {"onward_journal": "table", "onward_workflows": "view"}
    )
    with pytest.raises(StoreError):
        await open_store(world.url()).drop_schema()
    assert objects(world.path) == before


async def test_no_worker_can_register_in_between(world: SqliteWorld) -> None:
    store = await world.open()
    leases = store.leases()
    assert (await open_store(world.url(), world.clock).drop_schema()).removed
    with pytest.raises(OnwardError):
        leases.register(worker_row("late"), 15 * SECOND)
    leases.close()
    assert list((world.tmp_path / "onward.db-workers").iterdir()) == []


async def test_the_printed_statements_make_the_very_schema_that_the_library_makes(world: SqliteWorld) -> None:
    await made(world)
    with closing(sqlite3.connect(world.path)) as conn:
        own = conn.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
    printed = world.tmp_path / "printed.db"
    with closing(sqlite3.connect(printed)) as conn:
        conn.executescript(schema_sql())
        assert conn.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall() == own
    store = open_store(f"sqlite:///{printed}")
    await store.open(migrate=False)
    await store.close()
