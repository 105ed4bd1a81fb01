"""Moves all workflows of one database to another, with those in flight: what `onward copy` does.

1. *Mark* the target, which must be empty: nobody can start, signal or claim there. *Fence* the source: in one transaction running
   workflows become pending, all executions lose their lease, and every write is refused from then on, with the new URL.
2. *Copy* the tables in order of their keys, in bounded batches; each moves the target's position in its own transaction.
3. *Verify* counts and digests of all tables, read again from both sides, and *open* the target in one transaction.

Whatever ends this process in between, the same call goes on where it stopped. The target's mark is the judge: it is opened or
emptied (`abort`), never both, and the source is freed only after the target has been emptied.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import msgspec

from onward._engine import failpoints
from onward._store.base import Transfer
from onward._store.transfer import TABLES, Key, Move, Place, Position, Row, Table
from onward.errors import ConfigurationError, FatalStoreError, OutcomeUnknown, StoreConflict, TransientStoreError

T = TypeVar("T")
Stage: TypeAlias = Literal["marked", "fenced", "copied", "verified", "opened"]

BATCH_ROWS = 1_000
BATCH_BYTES = 4_000_000
"""A transaction of the copy holds so much at most: it is over within a second."""
PATIENCE_S = 60.0
"""How long a database that is busy or away is asked again."""
PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """What has just been done; `table`, `done` and `total` count rows."""

    stage: Stage
    table: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """The end of a move. `is_new`: it was not complete before."""

    counts: dict[str, int]
    is_new: bool


@dataclass(frozen=True, slots=True)
class Copying:
    """A move between two sides.

    Args:
        source: where the workflows are.
        target: where they go; its schema exists.
        told: hears of each step.
    """

    source: Transfer
    target: Transfer
    told: Callable[[Progress], None] = lambda progress: None

    async def move(self) -> Moved:
        """Begin, or go on, and bring it to its end.

        Raises ConfigurationError where the two cannot be source and target, FatalStoreError if the copy is not equal, StoreError.
        """
        source, target = await _sure(self.source.look), await _sure(self.target.look)
        known = copy_under_way(source, target)
        if known is not None and known.ended_at is not None:
            await _sure(lambda: self.source.note_end(known.copy_id))
            return Moved(target.counts, is_new=False)
        copy_id = known.copy_id if known is not None else uuid.uuid4().hex
        failpoints.hit("copy:mark")
        await _sure(lambda: self.target.mark_target(copy_id, source.url))
        self.told(Progress("marked"))
        failpoints.hit("copy:fence")
        await _sure(lambda: self.source.fence_source(copy_id, target.url))
        self.told(Progress("fenced"))
        failpoints.hit("copy:fenced")
        source = await _sure(self.source.look)  # nothing changes from here on
        await self._copy(copy_id, source.counts)
        await self._verify(source.counts, target.url)
        failpoints.hit("copy:open")
        await _sure(lambda: self.target.open_target(copy_id, source.mail_id))
        failpoints.hit("copy:opened")
        await _sure(lambda: self.source.note_end(copy_id))
        self.told(Progress("opened"))
        return Moved(source.counts, is_new=True)

    # ------------------------------------------------------------------ phase 2

    async def _copy(self, copy_id: str, totals: dict[str, int]) -> None:
        position = await self._position(copy_id)
        complete = 0 if position is None else position[0]
        done = (await _sure(self.target.look)).counts
        for index, table in enumerate(TABLES):
            if index < complete:
                continue
            after = position[1] if position is not None and position[1] and position[0] == index else table.first
            count = done[table.name]
            while rows := await self._read(self.source, table, after):
                after = table.key(rows[-1])
                await self._write(copy_id, table, rows, position, (index, after))
                position = (index, after)
                count += len(rows)
                self.told(Progress("copied", table.name, count, totals[table.name]))
            await self._write(copy_id, table, [], position, (index + 1, ()))
            position = (index + 1, ())

    async def _position(self, copy_id: str) -> Position | None:
        """The target's position. Raises ConfigurationError where the mark is gone."""
        mark = (await _sure(lambda: self.target.look(counts=False))).target
        if mark is None or mark.copy_id != copy_id or mark.ended_at is not None:
            raise ConfigurationError("the copy was aborted meanwhile")
        return mark.position

    async def _read(self, side: Transfer, table: Table, after: Key) -> list[Row]:
        return await _sure(lambda: side.read_rows(table, after, limit=BATCH_ROWS, size=BATCH_BYTES))

    async def _write(
        self, copy_id: str, table: Table, rows: list[Row], before: Position | None, after: Position
    ) -> None:
        """Write a batch once, however often it is tried; the position tells whether an unknown commit came about."""
        give_up_at = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                failpoints.hit("copy:batch")
                await self.target.write_rows(copy_id, table, rows, before=before, after=after)
                failpoints.hit("copy:batched")
                return
            except StoreConflict as error:
                if len(rows) <= 1:
                    raise StoreConflict(
                        f"the target cannot hold a row of {table.name}, {_key_words(table, rows)}: {error}; put it right, or "
                        "delete it, in the source (after --abort), and copy again"
                    ) from error
                middle = len(rows) // 2
                between = (after[0], table.key(rows[middle - 1]))
                await self._write(copy_id, table, rows[:middle], before, between)
                await self._write(copy_id, table, rows[middle:], between, after)
                return
            except (TransientStoreError, OutcomeUnknown):
                if asyncio.get_running_loop().time() > give_up_at:
                    raise
            await asyncio.sleep(PAUSE_S)
            if await self._position(copy_id) == after:
                return

    # ------------------------------------------------------------------ phase 3

    async def _verify(self, counts: dict[str, int], target_url: str) -> None:
        for table in TABLES:
            failpoints.hit("copy:verify")
            ours, theirs = await asyncio.gather(self._digest(self.source, table), self._digest(self.target, table))
            if ours != theirs or ours[0] != counts[table.name]:
                raise FatalStoreError(
                    f"{table.name} in {target_url} is not equal to its source ({theirs[0]:,} rows against {ours[0]:,}): it was "
                    "not opened. Begin anew: onward copy --abort with the same URLs, then copy again"
                )
            self.told(Progress("verified", table.name, ours[0], counts[table.name]))

    async def _digest(self, side: Transfer, table: Table) -> tuple[int, str]:
        """How many rows, and what is in them, in order of the key."""
        digest = hashlib.blake2b(digest_size=16)
        count, after = 0, table.first
        while rows := await self._read(side, table, after):
            for row in rows:
                digest.update(msgspec.msgpack.encode(row))
            count += len(rows)
            after = table.key(rows[-1])
        return count, digest.hexdigest()

    # ------------------------------------------------------------------ giving up

    async def abort(self, *, force: bool = False) -> bool:
        """Give up a copy that is not complete: empty the target, then let the source go on. False if there was none.

        `force`: the source was moved to another URL than that of the target, or it is not known whether the copy is complete;
        the caller knows that the target is lost. Raises ConfigurationError where the copy is complete, StoreError.
        """
        source, target = await _sure(self.source.look), await _sure(self.target.look)
        theirs, ours = target.target, source.source
        is_theirs = theirs is not None and (
            (ours is not None and theirs.copy_id == ours.copy_id) or theirs.url == source.url
        )
        if theirs is not None and is_theirs:
            if theirs.ended_at is not None and ours is not None:
                raise ConfigurationError(
                    f"the copy to {target.url} is complete, and its workflows go on there; to bring them back, drop Onward from "
                    f"{source.url} (onward migrate --drop) and copy the other way"
                )
            if theirs.ended_at is None:
                failpoints.hit("copy:empty")
                await _sure(lambda: self.target.empty_target(theirs.copy_id))
        if ours is None:
            return is_theirs
        if not force:
            if ours.ended_at is not None:
                raise ConfigurationError(
                    f"the copy of {source.url} to {ours.url} is complete, and its workflows go on there"
                )
            if ours.url != target.url and not is_theirs:
                raise ConfigurationError(
                    f"{source.url} was moved to {ours.url}, not to {target.url}: abort with that URL (or, only if that database "
                    "is lost for good, with --force)"
                )
        failpoints.hit("copy:unfence")
        await _sure(lambda: self.source.unfence_source(ours.copy_id))
        return True


def copy_under_way(source: Place, target: Place) -> Move | None:
    """The mark of the copy that is to go on, or is complete; None: a new one can begin. Raises ConfigurationError."""
    if source.identity == target.identity:
        raise ConfigurationError(f"{source.url} and {target.url} are the same database")
    ours, theirs = source.source, target.target
    if theirs is not None and ours is not None and theirs.copy_id == ours.copy_id:
        return theirs
    if target.source is not None:
        raise ConfigurationError(
            f"{target.url} was itself moved to {target.source.url}; to use it again, remove what is in it: "
            f"onward migrate --drop --url {target.url}"
        )
    if theirs is not None and theirs.ended_at is None and (ours is not None or theirs.url != source.url):
        raise ConfigurationError(
            f"{target.url} is the unfinished copy of {theirs.url}: finish that one, or abort it (onward copy --abort "
            f"{theirs.url} {target.url})"
        )
    if ours is not None:
        raise ConfigurationError(
            f"{source.url} was moved to {ours.url} already; if that copy is not complete, finish or abort it first"
        )
    if theirs is not None and theirs.ended_at is None:
        return theirs
    if not target.is_empty:
        found = ", ".join(f"{count:,} in {name}" for name, count in target.counts.items() if count)
        raise ConfigurationError(
            f"{target.url} is not empty ({found}): workflows can be copied into an empty database only"
        )
    if target.worker_count:
        raise ConfigurationError(f"a worker is at work on {target.url}: stop it until the copy is complete")
    return None


async def _sure(action: Callable[[], Awaitable[T]]) -> T:
    """An action that changes nothing when it is done again, tried again while its database is busy or away."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + PATIENCE_S
    while True:
        try:
            return await action()
        except (TransientStoreError, OutcomeUnknown):
            if loop.time() > give_up_at:
                raise
        await asyncio.sleep(PAUSE_S)


def _key_words(table: Table, rows: list[Row]) -> str:
    values = table.key(rows[0]) if rows else ()
    return ", ".join(f"{name} {value!r}" for name, value in zip(table.columns, values, strict=False))
