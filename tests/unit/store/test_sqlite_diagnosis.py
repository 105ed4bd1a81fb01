"""A look at one SQLite file: what is wrong with the file, its place and its schema is a finding, and nothing is changed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from onward._store.checks import findings_of
from onward._store.coded import coded
from onward._store.diagnosis import Finding
from onward._store.opening import open_store
from onward._store.schema import Migration
from onward._store.sqlite import diagnosis
from onward._store.sqlite.diagnosis import LARGE_WAL, LEFT_OVER_S, has_wal_reset_bug
from onward._store.sqlite.facts import within
from onward._store.sqlite.locks import LockFile, is_held
from onward._store.sqlite.migrations import known_migrations
from onward.codec import PlainCodec
from onward.errors import ConfigurationError, SchemaError
from tests.conformance.support import SqliteWorld, complete, start, started_and_claimed


async def findings(world: SqliteWorld, *, thorough: bool = False) -> dict[str, Finding]:
    """By check; a check with several findings has its last one here."""
    found = await open_store(world.url(), world.clock).diagnose(thorough=thorough)
    return {finding.check: finding for finding in findings_of(found)}


async def made(world: SqliteWorld) -> SqliteWorld:
    """A closed file with one workflow."""
    store = await world.open()
    await start(store)
    await store.close()
    return world


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_the_wal_reset_bug_is_in_all_versions_below_the_corrected_ones(version: tuple[int, ...], has_it: bool) -> None:
    assert has_wal_reset_bug(version) is has_it


@pytest.mark.parametrize(("workers", "level"), [(0, "ok"), (1, "ok"), (2, "warn")])
async def test_the_wal_reset_bug_is_a_warning_from_two_worker_processes_on(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch, workers: int, level: str
) -> None:
    monkeypatch.setattr(diagnosis, "has_wal_reset_bug", lambda: True)
    store = await world.open()
    for number in range(workers):
        world.worker(store, f"w{number}")
    with closing(sqlite3.connect(world.path)) as conn, conn:
        conn.execute("UPDATE onward_workers SET pid = rowid")
    found = (await findings(world))["sqlite"]
    assert (found.level, found.data["worker_processes"]) == (level, workers)
    assert f"{workers} worker process{'' if workers == 1 else 'es'} " in found.text


async def test_a_corrected_sqlite_is_simply_named(world: SqliteWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "has_wal_reset_bug", lambda: False)
    found = (await findings(await made(world)))["sqlite"]
    assert (found.level, found.text) == ("ok", f"SQLite {sqlite3.sqlite_version}")


async def test_a_missing_file_is_an_error_and_stays_missing(world: SqliteWorld) -> None:
    with pytest.raises(SchemaError, match="there is no database .*onward migrate"):
        await findings(world)
    assert list(world.tmp_path.iterdir()) == []


async def test_a_healthy_file_has_nothing_wrong_and_is_left_as_it_is(world: SqliteWorld) -> None:
    await made(world)
    before = hashlib.sha256(world.path.read_bytes()).digest()
    found = await findings(world, thorough=True)
    assert {name for name, finding in found.items() if finding.level == "fail"} == set()
    assert found["schema"].text == f"schema {len(known_migrations())}, up to date"
    assert found["durability"].data["journal_mode"] == "wal"
    assert "synchronous=FULL" in found["durability"].text
    assert found["integrity"].data == {"method": "integrity_check", "is_complete": True, "problems": []}
    assert found["file-system"].data["path"] == str(world.path)
    assert hashlib.sha256(world.path.read_bytes()).digest() == before
    assert list(world.tmp_path.iterdir()) == [world.path]


async def test_a_look_needs_no_write_lock_and_waits_for_none(world: SqliteWorld) -> None:
    await made(world)
    with closing(sqlite3.connect(world.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE onward_workflows SET priority = 1")
        found = await findings(world)
        writer.execute("COMMIT")
    assert found["workflows"].text == "1 pending"


async def test_a_file_without_our_schema_is_unusable_and_stays_as_it_is(world: SqliteWorld) -> None:
    with closing(sqlite3.connect(world.path)) as conn, conn:
        conn.execute("CREATE TABLE mine (x)")
    before = world.path.read_bytes()
    found = await findings(world)
    assert found["schema"].is_unusable
    assert "has no Onward schema" in found["schema"].text
    assert "onward migrate --url sqlite:///" in found["schema"].cure
    assert found["durability"].level == "warn"
    assert "'delete', not 'wal'" in found["durability"].text
    assert "workers" not in found
    assert world.path.read_bytes() == before


async def test_a_schema_that_lacks_a_migration_is_unusable_with_the_cure(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(world)
    more = [
        *known_migrations(),
        Migration(len(known_migrations()) + 1, "more", "0.1.0", "c", "CREATE TABLE onward_x (y);\n"),
    ]
    monkeypatch.setattr(diagnosis, "known_migrations", lambda: more)
    found = (await findings(world))["schema"]
    assert found.is_unusable
    assert f"lacks migration {len(more)} (more)" in found.text


@pytest.mark.parametrize(("oldest", "level"), [("99.0.0", "fail"), ("0.0.1", "ok")])
async def test_a_newer_schema_is_unusable_unless_it_lets_this_library_go_on(
    world: SqliteWorld, oldest: str, level: str
) -> None:
    await made(world)
    with closing(sqlite3.connect(world.path)) as conn, conn:
        conn.execute("INSERT INTO onward_migrations VALUES (900, 'tomorrow', ?, 'c', 0, '99.0.0')", (oldest,))
    found = (await findings(world))["schema"]
    assert (found.level, found.is_unusable) == (level, level == "fail")
    assert "900 (tomorrow)" in found.text


async def test_a_dropped_index_is_a_failure_with_the_statement_that_makes_it_again(world: SqliteWorld) -> None:
    await made(world)
    with closing(sqlite3.connect(world.path, isolation_level=None)) as conn:
        conn.execute("DROP INDEX onward_workflows_due")
        found = (await findings(world))["schema"]
        assert (found.level, found.is_unusable) == ("fail", False)
        assert "index onward_workflows_due" in found.text
        conn.execute(found.cure.partition(": ")[2])
    assert (await findings(world))["schema"].level == "ok"


async def test_a_dropped_table_makes_the_file_unusable(world: SqliteWorld) -> None:
    await made(world)
    with closing(sqlite3.connect(world.path)) as conn, conn:
        conn.execute("DROP TABLE onward_step_retries")
    assert (await findings(world))["schema"].is_unusable


async def test_damage_is_found(world: SqliteWorld) -> None:
    store = await world.open()
    for number in range(300):
        await start(store, f"x{number:04}")
    await store.close()
    with world.path.open("r+b") as file:
        file.seek(4096 * 12)
        file.write(os.urandom(4096 * 8))
    found = await findings(world)
    assert found["integrity"].is_unusable
    assert "damaged" in found["integrity"].text


async def test_what_is_no_database_is_unusable(world: SqliteWorld) -> None:
    world.path.write_text("this is no database, " * 100)
    found = await findings(world)
    assert found["integrity"].is_unusable
    assert "not an SQLite database" in found["integrity"].text


async def test_a_locked_file_is_a_finding(world: SqliteWorld) -> None:
    with closing(sqlite3.connect(world.path, isolation_level=None)) as conn:
        conn.execute("CREATE TABLE mine (x)")
        conn.execute("BEGIN EXCLUSIVE")
        found = await findings(world)
        conn.execute("ROLLBACK")
    assert found["access"].is_unusable
    assert "locked" in found["access"].text


async def test_a_file_that_everybody_may_write_is_a_warning(world: SqliteWorld) -> None:
    await made(world)
    world.path.chmod(0o666)
    found = (await findings(world))["permissions"]
    assert (found.level, found.cure) == ("warn", f"chmod o-w {world.path}")


async def test_a_file_that_this_user_cannot_write_is_a_failure(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(world)
    monkeypatch.setattr(diagnosis, "_may_write", lambda place: place != world.path)  # root may write everywhere
    found = (await findings(world))["permissions"]
    assert (found.level, found.data) == ("fail", {"not_writable": [str(world.path)]})


async def test_a_log_of_another_user_is_a_warning(world: SqliteWorld) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    store = await world.open()
    await start(store)
    os.chown(world.path.with_name("onward.db-wal"), 54321, -1)
    found = (await findings(world))["permissions"]
    assert found.level == "warn"
    assert "54321" in found.text


@pytest.mark.parametrize(
    ("kind", "level", "is_unusable"),
    [("ext4", "ok", False), ("tmpfs", "warn", False), ("overlay", "warn", False), ("nfs4", "fail", True)],
)
async def test_the_file_system_is_judged(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch, kind: str, level: str, is_unusable: bool
) -> None:
    await made(world)
    monkeypatch.setattr(diagnosis, "file_system", lambda path: (kind, "/mnt"))
    if kind == "nfs4":
        monkeypatch.setattr("onward._store.sqlite.connection.file_system", lambda path, mounts=None: (kind, "/mnt"))
    found = (await findings(world))["file-system"]
    assert (found.level, found.is_unusable) == (level, is_unusable)
    assert kind in found.text


@pytest.mark.parametrize(("free", "level"), [(500_000_000_000, "ok"), (900_000_000, "warn"), (90_000_000, "fail")])
async def test_a_disk_that_is_nearly_full_is_told(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    await made(world)

    usage = SimpleNamespace(free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    found = (await findings(world))["disk"]
    assert (found.level, found.data["free"]) == (level, free)


async def test_a_file_that_fills_its_disk_within_a_week_is_a_warning(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(world)
    monkeypatch.setattr(diagnosis, "daily_bytes", lambda work: 10**18)
    found = (await findings(world))["disk"]
    assert found.level == "warn"
    assert "at this pace" in found.text


async def test_a_large_log_is_a_warning(world: SqliteWorld) -> None:
    await made(world)
    with world.path.with_name("onward.db-wal").open("wb") as log:
        log.truncate(LARGE_WAL + 1)  # sparse
    keeper = sqlite3.connect(world.path)  # SQLite ignores a log without a header, and the last connection removes it
    keeper.execute("SELECT count(*) FROM onward_workflows").fetchone()
    with world.path.with_name("onward.db-wal").open("r+b") as log:
        log.truncate(LARGE_WAL + 1)
    found = (await findings(world))["size"]
    keeper.close()
    assert found.level == "warn"
    assert "the log cannot be folded" in found.text


async def test_a_worker_killed_and_one_alive_are_told_apart_by_their_locks(world: SqliteWorld) -> None:
    store = await world.open()
    victim = world.worker(store, "dead", lease_s=1000)
    world.worker(store, "alive", lease_s=1000)
    await started_and_claimed(store, worker="dead")
    victim.close()
    work = (await store.diagnose()).work
    assert work is not None
    assert work.proofs == {"dead": False, "alive": True}
    assert (await findings(world))["leases"].data["gone"] == ["dead"]


async def test_a_worker_that_retires_during_the_look_is_not_taken_for_dead(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await world.open()
    leases = world.worker(store, "w1")
    looks: list[Path] = []

    def look(path: Path) -> bool | None:
        looks.append(path)
        leases.retire("w1")  # between our look at its row and at its lock
        path.write_text("")
        return is_held(path)

    monkeypatch.setattr("onward._store.sqlite.facts.is_held", look)
    work = (await store.diagnose()).work
    assert work is not None
    assert (work.workers, len(looks)) == ((), 1)


async def test_lock_files_without_a_worker_are_told_once_they_are_old(world: SqliteWorld) -> None:
    store = await world.open()
    world.worker(store, "w1")
    directory = world.path.with_name("onward.db-workers")
    young, old, held = (directory / f"{name}.lock" for name in ("young", "old", "held"))
    for file in (young, old, held):
        file.write_text("")
    lock = LockFile.try_lock(held, create=False)
    assert lock is not None
    before = time.time() - 2 * LEFT_OVER_S
    for file in (old, held, directory / "w1.lock"):
        os.utime(file, (before, before))
    found = (await findings(world))["lock-files"]
    lock.drop()
    assert (found.level, found.data) == ("warn", {"left_over": 1})
    assert str(old) in found.cure


def test_asking_for_a_lock_leaves_it_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    assert is_held(path) is None
    lock = LockFile.try_lock(path, create=True)
    assert lock is not None
    assert is_held(path) is True
    lock.drop()
    assert is_held(path) is False
    again = LockFile.try_lock(path, create=False)
    assert again is not None
    again.drop()


def test_a_look_that_takes_too_long_is_given_up() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        assert within(conn, 0.01, lambda: conn.execute(endless).fetchone()) is None
        assert within(conn, 60.0, lambda: conn.execute("SELECT 1").fetchone()) == (1,)
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            within(conn, 60.0, lambda: conn.execute("SELECT 1 FROM nowhere"))


async def test_a_check_that_takes_too_long_says_so(world: SqliteWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await made(world)
    monkeypatch.setattr(diagnosis, "within", lambda conn, limit_s, look: None if limit_s is not None else look())
    assert (await findings(world))["integrity"].data == {"method": "quick_check", "is_complete": False}
    assert (await findings(world, thorough=True))["integrity"].data["is_complete"] is True


async def test_the_size_of_the_tables_is_known_where_they_have_the_file_to_themselves(world: SqliteWorld) -> None:
    store = await world.open()
    world.worker(store)
    await start(store)
    await complete(store, "a")
    work = (await store.diagnose()).work
    assert work is not None
    assert work.size
    with closing(sqlite3.connect(world.path)) as conn, conn:
        conn.execute("CREATE TABLE mine (x)")
    work = (await store.diagnose()).work
    assert work is not None
    assert work.size is None


async def test_a_codec_makes_no_difference(world: SqliteWorld) -> None:
    await made(world)

    class Reversing(PlainCodec):
        def decode(self, text: str) -> str:
            raise AssertionError("a look reads no payload")

    plain, store = open_store(world.url(), world.clock), open_store(world.url(), world.clock)
    found = await coded(store, Reversing()).diagnose()
    assert found.work == (await plain.diagnose()).work
    assert coded(store, Reversing()).schema_sql() == plain.schema_sql()
    assert (await coded(store, Reversing()).drop_schema()).removed


def test_the_library_being_too_old_is_a_finding(world: SqliteWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(made(world))

    def refuse() -> None:
        raise ConfigurationError("this Python uses SQLite 3.22.0")

    monkeypatch.setattr(diagnosis, "check_version", refuse)
    [old] = [one for one in asyncio.run(open_store(world.url()).diagnose()).findings if one.is_unusable]
    assert (old.check, old.text) == ("sqlite", "this Python uses SQLite 3.22.0")
