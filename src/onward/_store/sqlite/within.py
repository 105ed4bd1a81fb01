"""Starts, signals and cancels in the transaction of a caller's own connection to the file: the script behind `tx=`.

It runs on the caller's connection, thread and settings, so it checks first that the connection is one to this very file, that a
transaction is open, and that the schema is there; it creates and migrates nothing. What it then writes lies in a savepoint:
all of it remains in the transaction, or nothing. Workers hear of it by the commit, as of any commit of another connection
(hub.py), since nobody can be called back by a connection that is not ours.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec

from onward._store.operations import APPLIED, Applied, CancelOp, Outcome, SignalOp, Started, StartOp
from onward._store.schema import AppliedMigration, Migration
from onward._store.scripts import Script
from onward._store.sqlite.connection import absolute
from onward._store.sqlite.database import Database
from onward._store.sqlite.faults import classify
from onward._store.sqlite.mailbox import cancel, deliver_signals
from onward._store.sqlite.migrations import check_applied, known_migrations, url_of
from onward._store.sqlite.starts import Start, start_workflows
from onward._store.sqlite.wakes import Wakes
from onward._store.statements import load_statements
from onward._store.within.base import Caller, CallerOp
from onward.errors import TransientStoreError, WrongConnection

SQL = load_statements("onward._store.sqlite", "within")


def write_within(database: Database, ops: Sequence[CallerOp], caller: Caller) -> Script[list[Outcome]]:
    """See `WritesWithin.write_within`."""
    if caller.database != "sqlite":
        raise WrongConnection(
            f"tx= is {caller.title}, but this client works on the SQLite file {database.name}; "
            "give the client the URL of the connection's database"
        )
    try:
        yield from _check_file(database, caller)
        yield from _take_write_lock(database, caller)
        [[text]] = yield SQL["read_migrations"], {}
        check_applied(_known(), [AppliedMigration(*row) for row in msgspec.json.decode(text)], database)
        return (yield from _all_or_nothing(ops, database.now_us()))
    except sqlite3.ProgrammingError as error:
        if getattr(error, "sqlite_errorcode", None) is not None:
            raise classify(error, database=database.name) from error
        raise WrongConnection(f"tx= is {caller.title} that cannot be used here: {error}") from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise TransientStoreError(
                f"{database.name}: {error}: another connection is writing, or has written after this transaction first read; "
                "nothing was written: roll back and run the transaction again. BEGIN IMMEDIATE waits for its turn at the start"
            ) from error
        raise classify(error, database=database.name) from error


@functools.cache
def _known() -> list[Migration]:
    return known_migrations()


def _check_file(database: Database, caller: Caller) -> Script[None]:
    rows = yield SQL["list_files"], {}
    name = os.fsdecode(rows[0][2] or "")  # the first one is the main database
    if not name or not _is_same(name, database.path):
        what = name or "a database in memory"
        raise WrongConnection(
            f"tx= is {caller.title} to {what}, but this client works on {database.name}; "
            f"connect to that file, or give the client the connection's file as its URL ({url_of(database)} is its own)"
        )


def _is_same(name: str, path: Path) -> bool:
    try:
        return os.path.samefile(name, path)
    except OSError:  # one of them is not there (any more)
        return absolute(name) == path


def _take_write_lock(database: Database, caller: Caller) -> Script[None]:
    try:
        yield SQL["take_write_lock"], {}
    except sqlite3.OperationalError:
        [[has_schema]] = yield SQL["has_schema"], {}
        if not has_schema:
            check_applied(_known(), [], database)
        raise
    if not caller.has_transaction():
        raise WrongConnection(
            f"tx= is {caller.title} without an open transaction, so nothing could be rolled back; {caller.cure}"
        )


def _all_or_nothing(ops: Sequence[CallerOp], now: int) -> Script[list[Outcome]]:
    yield SQL["open_savepoint"], {}
    try:
        outcomes = yield from _apply(ops, now)
    except GeneratorExit:  # nobody carries out statements any more
        raise
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back the whole transaction itself
            yield from _undo()
        raise
    if all(isinstance(outcome, (Applied, Started)) for outcome in outcomes):
        yield SQL["release_savepoint"], {}
    else:
        yield from _undo()
    return outcomes


def _undo() -> Script[None]:
    yield SQL["undo_to_savepoint"], {}
    yield SQL["release_savepoint"], {}


def _apply(ops: Sequence[CallerOp], now: int) -> Script[list[Outcome]]:
    outcomes: list[Outcome] = [APPLIED] * len(ops)
    wakes = Wakes()
    starts = [Start(index, op) for index, op in enumerate(ops) if isinstance(op, StartOp)]
    signals = [(index, op) for index, op in enumerate(ops) if isinstance(op, SignalOp)]
    cancels = [(index, op.workflow_id) for index, op in enumerate(ops) if isinstance(op, CancelOp)]
    if starts:
        yield from start_workflows(starts, outcomes, wakes, now)
    if signals:
        yield from deliver_signals(signals, outcomes, wakes, now)
    if cancels:
        yield from cancel(cancels, outcomes, wakes, now, retry=False)
    yield from wakes.write(now)
    return outcomes
