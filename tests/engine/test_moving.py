"""Moving workflows to another database: what may be source and target, going on after an interruption, giving up."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from onward._engine import moving
from onward._engine.moving import Copying, Progress
from onward._store.base import Store, Transfer
from onward._store.opening import open_store
from onward._store.operations import StartOp
from onward._store.records import NewWorkflow, WorkerRow
from onward._store.transfer import TABLES, Row, Table
from onward.errors import ConfigurationError, FatalStoreError, OutcomeUnknown, SchemaError, StoreImporting, StoreMoved


@asynccontextmanager
async def opened(path: Path, count: int = 0) -> AsyncIterator[tuple[Store, Transfer]]:
    """A file with so many workflows, and itself as a side of a move."""
    store = open_store(f"sqlite:///{path}")
    await store.open()
    side = store.transfer()
    try:
        for number in range(count):
            new = NewWorkflow(id=f"w{number:03}", type="flow", payload="[[],{}]", digest="d", seed=f"{number:032x}")
            await store.write([StartOp(new)])
        yield store, side
    finally:
        await side.close()
        await store.close()


def worker_row() -> WorkerRow:
    return WorkerRow(id="w1", name="w", host="h", pid=1, queues=("default",), types=("flow",), code_version="c")


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("INSERT INTO onward_migrations VALUES (9, 'later', '0.1.0', 'x', 0, '9.0.0')")


class Side:
    """A side of a move that does what a test says at one of its methods; the rest goes straight through."""

    def __init__(self, inner: Transfer) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Killed(Exception):
    """Stands for the end of the process."""


class Dies(Side):
    """Dies at the n-th call that changes something, before or after it was carried out."""

    CHANGES = frozenset({
        "mark_target", "fence_source", "write_rows", "open_target", "note_end", "empty_target", "unfence_source",
    })  # fmt: skip

    def __init__(self, inner: Transfer, budget: list[int], *, after: bool) -> None:
        super().__init__(inner)
        self._budget = budget
        self._after = after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self.CHANGES:
            return method

        async def mortal(*args: Any, **kwargs: Any) -> Any:
            self._budget[0] -= 1
            if self._budget[0] == 0 and not self._after:
                raise Killed
            result = await method(*args, **kwargs)
            if self._budget[0] == 0:
                raise Killed
            return result

        return mortal


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "BATCH_ROWS", 3)
    monkeypatch.setattr(moving, "PAUSE_S", 0.0)


async def serves(store: Store) -> bool:
    try:
        await store.check_serving()
    except (StoreMoved, StoreImporting):
        return False
    return True


async def contents(side: Transfer) -> dict[str, list[Row]]:
    return {table.name: await side.read_rows(table, table.first, limit=10_000, size=10**9) for table in TABLES}


async def test_progress_is_told_and_ends_with_the_open_target(tmp_path: Path) -> None:
    """Marked, fenced, each batch, each table verified, opened."""
    told: list[Progress] = []
    async with opened(tmp_path / "a.db", 7) as (_, source), opened(tmp_path / "b.db") as (there, target):
        moved = await Copying(source, target, told.append).move()
        assert moved.is_new
        assert moved.counts["workflows"] == 7
        assert [progress.stage for progress in told] == [
            "marked", "fenced", "copied", "copied", "copied", *["verified"] * len(TABLES), "opened",
        ]  # fmt: skip
        assert [progress.done for progress in told if progress.stage == "copied"] == [3, 6, 7]
        assert await there.counts() == {"pending": 7}
        again = await Copying(source, target).move()
        assert not again.is_new


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_copy_that_is_cut_off_anywhere_goes_on_and_ends_equal(tmp_path: Path, *, after: bool) -> None:
    """Before and after each change of either database: the next run brings it to its end, with nothing twice."""
    for place in range(1, 100):
        async with (
            opened(tmp_path / f"a{place}.db", 7) as (here, source),
            opened(tmp_path / f"b{place}.db") as (there, target),
        ):
            budget = [place]
            mortal = Copying(Dies(source, budget, after=after), Dies(target, budget, after=after))
            try:
                await mortal.move()
            except Killed:
                assert not (await serves(here) and await serves(there) and await there.counts())
            else:
                assert place > 8
                return
            await Copying(source, target).move()
            rows = await contents(source)
            assert await contents(target) == rows
            assert len(rows["workflows"]) == 7
            await there.check_serving()
            assert (await source.look()).source is not None
    raise AssertionError("never survived")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_copy_that_is_cut_off_before_it_is_open_can_be_given_up(tmp_path: Path, *, after: bool) -> None:
    """The target is empty and free again, the source goes on; once it is open, giving up is refused."""
    was_refused = False
    for place in range(1, 100):
        async with (
            opened(tmp_path / f"a{place}.db", 7) as (here, source),
            opened(tmp_path / f"b{place}.db") as (there, target),
        ):
            budget = [place]
            try:
                await Copying(Dies(source, budget, after=after), Dies(target, budget, after=after)).move()
            except Killed:
                pass
            else:
                assert was_refused
                return
            mark = (await target.look()).target
            if mark is not None and mark.ended_at is not None:
                was_refused = True
                with pytest.raises(ConfigurationError, match="complete"):
                    await Copying(source, target).abort()
                with pytest.raises(StoreMoved):
                    await here.check_serving()
                continue
            was_marked = mark is not None
            assert await Copying(source, target).abort() is was_marked
            await here.check_serving()
            await there.check_serving()
            found = await target.look()
            assert found.is_empty
            assert found.target is None
            assert await Copying(source, target).abort() is False
    raise AssertionError("never survived")


async def test_an_abort_that_is_cut_off_leaves_no_two_open_databases(tmp_path: Path) -> None:
    """After each change: the target is never open, and the next abort frees the source."""
    for place in range(1, 10):
        async with (
            opened(tmp_path / f"a{place}.db", 7) as (here, source),
            opened(tmp_path / f"b{place}.db") as (_, target),
        ):
            with pytest.raises(Killed):
                await Copying(source, Dies(target, [3], after=True)).move()
            budget = [place]
            mortal = Copying(Dies(source, budget, after=True), Dies(target, budget, after=True))
            try:
                await mortal.abort()
            except Killed:
                assert (await target.look()).is_empty
                if place == 1:
                    with pytest.raises(StoreMoved):
                        await here.check_serving()
                    with pytest.raises(ConfigurationError, match="moved to"):  # the copy is gone, so it cannot go on
                        await Copying(source, target).move()
                await Copying(source, target).abort()
                await here.check_serving()
            else:
                assert place == 3
                return


async def test_an_unknown_commit_of_a_batch_is_looked_up(tmp_path: Path) -> None:
    """It is written once, whether it came about or not."""

    class Forgets(Side):
        def __init__(self, inner: Transfer) -> None:
            super().__init__(inner)
            self.count = 0

        async def write_rows(self, *args: Any, **kwargs: Any) -> None:
            self.count += 1
            if self.count % 3 == 1:
                raise OutcomeUnknown("lost before")
            await self._inner.write_rows(*args, **kwargs)
            if self.count % 3 == 2:
                raise OutcomeUnknown("lost after")

    async with opened(tmp_path / "a.db", 7) as (_, source), opened(tmp_path / "b.db") as (_, target):
        await Copying(source, Forgets(target)).move()
        assert await contents(target) == await contents(source)


@pytest.mark.parametrize("change", ["lost", "altered", "added"])
async def test_a_copy_that_is_not_equal_is_never_opened(tmp_path: Path, change: str) -> None:
    """A row less, another value in it, or a row more: the target stays closed, and can be given up."""

    class Spoils(Side):
        async def write_rows(self, copy_id: str, table: Table, rows: Sequence[Row], **places: Any) -> None:
            if table.name == "workflows" and rows and rows[0][0] == "w003":
                first = list(rows[0])
                first[table.columns.index("attempts")] = 1
                extra = ["x", *rows[0][1:]]
                rows = {"lost": rows[1:], "altered": [tuple(first), *rows[1:]], "added": [*rows, tuple(extra)]}[change]
            await self._inner.write_rows(copy_id, table, rows, **places)

    async with opened(tmp_path / "a.db", 7) as (here, source), opened(tmp_path / "b.db") as (there, target):
        with pytest.raises(FatalStoreError, match="workflows in .* is not equal"):
            await Copying(source, Spoils(target)).move()
        with pytest.raises(StoreImporting):
            await there.check_serving()
        assert await Copying(source, target).abort()
        await here.check_serving()


async def test_what_cannot_be_source_and_target_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    """The same database, a target with workflows, one that another copy has taken, a source that was moved elsewhere."""
    async with (
        opened(tmp_path / "a.db", 2) as (a, a_side),
        opened(tmp_path / "b.db", 1) as (b, b_side),
        opened(tmp_path / "c.db") as (_, c_side),
        opened(tmp_path / "d.db") as (_, d_side),
    ):
        (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
        with pytest.raises(ConfigurationError, match="same database"):
            await Copying(a_side, open_store(f"sqlite:///{tmp_path}/link.db").transfer()).move()
        with pytest.raises(ConfigurationError, match=r"not empty \(1 in workflows\)"):
            await Copying(a_side, b_side).move()
        await a.check_serving()
        await b.check_serving()

        with pytest.raises(Killed):
            await Copying(a_side, Dies(c_side, [2], after=True)).move()
        with pytest.raises(ConfigurationError, match=r"unfinished copy of .*a\.db"):
            await Copying(b_side, c_side).move()
        with pytest.raises(ConfigurationError, match=r"was moved to .*c\.db already"):
            await Copying(a_side, d_side).move()
        with pytest.raises(ConfigurationError, match=r"moved to .*c\.db, not to .*d\.db"):
            await Copying(a_side, d_side).abort()
        await b.check_serving()
        assert (await d_side.look()).target is None
        await Copying(a_side, c_side).move()
        with pytest.raises(ConfigurationError, match=r"was itself moved to .*c\.db"):
            await Copying(b_side, a_side).move()


async def test_a_target_with_a_live_worker_is_refused(tmp_path: Path) -> None:
    """It would be thrown out."""
    async with opened(tmp_path / "a.db", 2) as (_, source), opened(tmp_path / "b.db") as (there, target):
        leases = there.leases()
        leases.register(worker_row(), 15_000_000)
        with pytest.raises(ConfigurationError, match="a worker is at work"):
            await Copying(source, target).move()
        leases.retire("w1")
        leases.close()
        await Copying(source, target).move()


async def test_a_source_without_schema_or_with_a_newer_one_is_refused(tmp_path: Path) -> None:
    """Nothing would be there, or something would be left behind."""
    async with opened(tmp_path / "b.db") as (_, target):
        missing = open_store(f"sqlite:///{tmp_path}/missing.db").transfer()
        with pytest.raises(SchemaError, match="there is no database"):
            await Copying(missing, target).move()
        assert not (tmp_path / "missing.db").exists()
    async with opened(tmp_path / "a.db", 1) as (_, source), opened(tmp_path / "b.db") as (_, target):
        make_newer(tmp_path / "a.db")
        with pytest.raises(SchemaError, match="newer than this onward"):
            await Copying(source, target).move()
        assert (await target.look()).target is None


async def test_force_frees_a_source_whose_target_is_lost(tmp_path: Path) -> None:
    """Only then: without it an abort with another URL is refused."""
    async with opened(tmp_path / "a.db", 2) as (here, source), opened(tmp_path / "c.db") as (_, other):
        async with opened(tmp_path / "b.db") as (_, target):
            await Copying(source, target).move()
        with pytest.raises(ConfigurationError):
            await Copying(source, other).abort()
        assert await Copying(source, other).abort(force=True)
        await here.check_serving()


async def test_workflows_move_on_from_database_to_database(tmp_path: Path) -> None:
    """A target is a source later; the empty rest of the first one, made anew, may become a target again."""
    async with opened(tmp_path / "a.db", 4) as (_, a_side), opened(tmp_path / "b.db") as (_, b_side):
        await Copying(a_side, b_side).move()
        async with opened(tmp_path / "c.db") as (c, c_side):
            await Copying(b_side, c_side).move()
            assert await c.counts() == {"pending": 4}
            assert await contents(c_side) == await contents(a_side)
    first = open_store(f"sqlite:///{tmp_path}/a.db")
    await first.drop_schema()
    async with opened(tmp_path / "a.db") as (a, a_side), opened(tmp_path / "c.db") as (_, c_side):
        await Copying(c_side, a_side).move()
        assert await a.counts() == {"pending": 4}
