"""Files and schemas: made, migrated, refused."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from onward._store.opening import open_store
from onward._store.schema import AppliedMigration, Migration, load_migrations, pending_migrations
from onward._store.sqlite.connection import MINIMUM_VERSION, check_file_system, check_version
from onward._store.sqlite.migrations import known_migrations, split_statements
from onward.errors import ConfigurationError, SchemaError
from tests.conformance.support import SqliteWorld, start

PACKAGE = "onward._store.sqlite"


async def test_a_read_of_a_missing_file_is_an_error_and_never_a_new_file(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/missing.db")
    with pytest.raises(SchemaError, match=r"no database .*missing\.db.*onward migrate --url sqlite:///"):
        await store.open(migrate=False)
    assert list(tmp_path.iterdir()) == []


async def test_a_file_without_our_schema_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE users (id)")
    conn.close()
    before = path.read_bytes()
    with pytest.raises(SchemaError, match="has no Onward schema; run: onward migrate --url"):
        await open_store(f"sqlite:///{path}").open(migrate=False)
    assert path.read_bytes() == before  # not even its journal mode has changed
    conn = sqlite3.connect(path)
    assert conn.execute("SELECT name FROM sqlite_schema").fetchall() == [("users",)]
    conn.close()


async def test_our_tables_live_beside_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE users (id)")
    conn.execute("INSERT INTO users VALUES (1)")
    conn.commit()
    store = open_store(f"sqlite:///{path}")
    await store.open()
    await store.close()
    assert conn.execute("SELECT id FROM users").fetchall() == [(1,)]
    names = {name for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")}
    assert {name for name in names if not name.startswith(("onward_", "sqlite_"))} == {"users"}
    conn.close()


async def test_a_second_open_finds_nothing_to_do_and_may_forbid_migration(world: SqliteWorld) -> None:
    await start(await world.open())
    store = open_store(world.url())
    await store.open(migrate=False)
    found = await store.get("a")
    await store.close()
    assert found is not None


async def test_many_openers_at_once_apply_each_migration_once(world: SqliteWorld) -> None:
    await asyncio.gather(*(world.open() for _ in range(6)))
    conn = sqlite3.connect(world.path)
    numbers = [number for (number,) in conn.execute("SELECT number FROM onward_migrations")]
    conn.close()
    assert numbers == [one.number for one in known_migrations()]


async def test_an_unfinished_migration_leaves_nothing(world: SqliteWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Migration(1, "bad", "0.1.0", "c", "CREATE TABLE onward_one (x);\nCREATE TABLE onward_one (x);\n")
    monkeypatch.setattr("onward._store.sqlite.migrations.known_migrations", lambda: [bad])
    with pytest.raises(Exception, match="onward_one"):
        await world.open()
    conn = sqlite3.connect(world.path)
    assert conn.execute("SELECT name FROM sqlite_schema").fetchall() == []
    conn.close()


async def test_a_schema_that_needs_a_newer_library_is_refused(world: SqliteWorld) -> None:
    await world.open()
    await world.close()
    change(world.path, "INSERT INTO onward_migrations VALUES (99, 'future', '9.0.0', 'x', 0, '9.1.0')")
    with pytest.raises(SchemaError, match=r"needs onward >= 9\.0\.0"):
        await world.open()


async def test_a_newer_schema_that_still_admits_this_library_is_used(world: SqliteWorld) -> None:
    await world.open()
    await world.close()
    change(world.path, "INSERT INTO onward_migrations VALUES (99, 'future', '0.0.1', 'x', 0, '9.1.0')")
    await start(await world.open())


async def test_a_migration_of_another_content_is_refused(world: SqliteWorld) -> None:
    await world.open()
    await world.close()
    change(world.path, "UPDATE onward_migrations SET checksum = 'edited'")
    with pytest.raises(SchemaError, match="another content"):
        await world.open()


def change(path: Path, sql: str) -> None:
    conn = sqlite3.connect(path)
    conn.execute(sql)
    conn.commit()
    conn.close()


def test_versions_are_compared_as_numbers() -> None:
    row = AppliedMigration(2, "x", "0.10.0", "c")
    assert pending_migrations([], [row], database="db", library="0.10.1") == []
    with pytest.raises(SchemaError):
        pending_migrations([], [row], database="db", library="0.9.9")


def test_migrations_are_numbered_without_gaps_and_carry_a_checksum() -> None:
    found = load_migrations(PACKAGE)
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    assert all(len(one.checksum) == 64 for one in found)


def test_statements_are_split_at_their_ends_only() -> None:
    sql = "-- a; b\nCREATE TABLE x (y);\nCREATE TRIGGER t AFTER INSERT ON x BEGIN\n SELECT 1;\n SELECT 2;\nEND;\n-- last\n"
    assert [one.split()[-1] for one in split_statements(sql)] == ["(y);", "END;"]
    with pytest.raises(ValueError, match="unfinished"):
        split_statements("CREATE TABLE x (y)\n")


async def test_times_are_integers_and_tables_are_strict(world: SqliteWorld) -> None:
    await world.open()
    conn = sqlite3.connect(world.path)
    tables = dict(
        conn.execute("SELECT name, strict FROM pragma_table_list WHERE name LIKE 'onward_%' AND type = 'table'")
    )
    conn.close()
    assert len(tables) == 9
    assert set(tables.values()) == {1}


async def test_the_overview_shows_the_last_step_and_no_seed(world: SqliteWorld) -> None:
    store = await world.open()
    await start(store, delay_us=1)
    conn = sqlite3.connect(world.path)
    conn.row_factory = sqlite3.Row
    [row] = conn.execute("SELECT * FROM onward_overview")
    conn.close()
    assert (row["id"], row["state"], row["created"]) == ("a", "queued", "2027-01-15T08:00:00Z")
    assert "seed" not in row.keys()  # noqa: SIM118 - iterating a Row gives its values


async def test_wal_and_full_synchronisation_are_on(world: SqliteWorld) -> None:
    from onward._store.sqlite.connection import connect

    await world.open()
    conn = connect(world.path)
    assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert conn.execute("PRAGMA synchronous").fetchone() == (2,)
    conn.close()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_network_file_systems_are_refused(kind: str) -> None:
    mounts = f"/dev/sda1 / ext4 rw 0 0\nserver:/x /mnt/my\\040share {kind} rw 0 0\n/dev/sdb /mnt/my\\040share/local ext4 rw 0 0\n"
    with pytest.raises(ConfigurationError, match=f"network file system .{kind}, mounted at /mnt/my share"):
        check_file_system(Path("/mnt/my share/dir/onward.db"), mounts)
    check_file_system(Path("/mnt/my share/local/onward.db"), mounts)
    check_file_system(Path("/mnt/my shared/onward.db"), mounts)
    check_file_system(Path("/home/onward.db"), mounts)


def test_an_old_sqlite_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"SQLite 3\.36\.9, but Onward needs 3\.37\.0"):
        check_version((3, 36, 9))
    check_version(MINIMUM_VERSION)


async def test_a_missing_directory_and_a_directory_as_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"directory .*nowhere does not exist"):
        await open_store(f"sqlite:///{tmp_path}/nowhere/x.db").open()
    with pytest.raises(ConfigurationError, match="is a directory"):
        await open_store(f"sqlite:///{tmp_path}").open()
