"""Starts, signals and cancels in the transaction of a caller's own connection to the database: the script behind `tx=`.

It runs on the caller's connection and with its settings. What it writes lies in a savepoint: all of it remains in the
transaction, or nothing, whatever fails. A start inserts the workflow's row. A signal or cancel only inserts into the outbox: the
row of its workflow stays free while the caller's transaction is open, and a deferred trigger delivers it and counts the wake at
the commit (migration 0001). Workers hear of it by a notification that PostgreSQL sends with the commit.

Once for each connection it is checked that it leads to the client's own database, and once that the schema is there; for that
the client asks its own database once. Nothing is created or migrated.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import msgspec
import psycopg

from onward._store.operations import APPLIED, BUSY, Applied, CancelOp, Outcome, SignalOp, Started, StartOp
from onward._store.postgres import faults
from onward._store.postgres.batch import Start
from onward._store.postgres.mailbox import note_cancels, note_signals
from onward._store.postgres.migrations import behind, known_migrations
from onward._store.postgres.starts import note_starts, start_calls
from onward._store.postgres.statements import Call, as_json
from onward._store.schema import AppliedMigration, Migration, pending_migrations
from onward._store.scripts import Aside, Rows, Script
from onward._store.within.base import Caller, CallerOp
from onward.errors import (
    FatalStoreError,
    OnwardError,
    StoreConflict,
    TransientStoreError,
    WrongConnection,
)

if TYPE_CHECKING:
    from onward._store.postgres.database import Database

_NUMBER = re.compile(r"\$(\d+)")
_DRIVERS = frozenset({"psycopg", "asyncpg"})
AGAIN = "nothing was written: roll back and run the transaction again"


class SentRow(msgspec.Struct, gc=False):
    """See `send` in within.sql."""

    id: str
    kind: str
    name: str = ""
    token: str | None = None
    payload: str | None = None


class CallersWrites:
    """The writes of one client; remembers which connections it has looked at."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._place: str | None = None
        """Which server and database the client's own URL leads to, once it has been asked."""
        self._checked: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        """Connections, with where they have led."""
        self._fitting: str | None = None
        """Where the schema has been found to be there, and to fit this library."""

    def write(self, ops: Sequence[CallerOp], caller: Caller) -> Script[list[Outcome]]:
        """See `WritesWithin.write_within`."""
        if caller.database != "postgresql":
            raise WrongConnection(
                f"tx= is {caller.title}, but this client works on {self._database.name}; "
                "give the client the URL of the connection's database"
            )
        yield from self._ask(caller, "open_savepoint")
        try:
            yield from self._check_place(caller)
            outcomes = yield from self._apply(ops, caller)
        except GeneratorExit:  # nobody carries out statements any more
            raise
        except BaseException:
            with contextlib.suppress(
                Exception
            ):  # a connection that is lost has undone everything; the first error counts
                yield from self._undo(caller)
            raise
        if all(isinstance(outcome, (Applied, Started)) for outcome in outcomes):
            yield from self._ask(caller, "release_savepoint")
        else:
            yield from self._undo(caller)
        return outcomes

    def _undo(self, caller: Caller) -> Script[None]:
        yield from self._ask(caller, "undo_to_savepoint")
        yield from self._ask(caller, "release_savepoint")

    # ------------------------------------------------------------------ the connection

    def _check_place(self, caller: Caller) -> Script[None]:
        if self._place is not None and self._checked.get(caller.connection) == self._place:
            return
        [[place, name, has_schema]] = yield from self._ask(caller, "read_place")
        if place != self._place:  # the first time, or the server was started again since
            [[self._place]] = yield Aside(self._look_at_own_place), {}
        if place != self._place:
            raise WrongConnection(
                f"tx= is {caller.title} to another database, named {name!r}, but this client works on {self._database.name}; "
                "connect to that one, or give the client the URL of the connection's database"
            )
        if place != self._fitting:
            applied: list[AppliedMigration] = []
            if has_schema:
                [[text]] = yield from self._ask(caller, "read_migrations")
                applied = [AppliedMigration(*row) for row in msgspec.json.decode(text)]
            pending = pending_migrations(_known(), applied, database=self._database.name)
            if pending:
                raise behind(_known(), pending, self._database)
            self._fitting = place
        self._checked[caller.connection] = place

    def _look_at_own_place(self) -> Rows:
        try:
            with self._database.connect_blocking() as conn:
                [row] = conn.execute(self._database.sql["read_place"].sql().encode()).fetchall()
        except psycopg.Error as error:
            raise faults.classify(error, database=self._database.name) from error
        return [row[:1]]

    # ------------------------------------------------------------------ the writes

    def _apply(self, ops: Sequence[CallerOp], caller: Caller) -> Script[list[Outcome]]:
        outcomes: list[Outcome] = [APPLIED] * len(ops)
        starts = [Start(index, op) for index, op in enumerate(ops) if isinstance(op, StartOp)]
        while starts:
            answers = []
            for call in start_calls(self._database.sql, starts):
                rows = yield from self._carry_out(caller, *_in_text(call))
                answers.append(rows[0][0].encode() if rows else None)
            note_starts(answers[1], starts, outcomes)
            if BUSY not in outcomes:
                yield from self._ask(caller, "tell_at_commit", channel=self._database.channel)
                break
            # An id that was taken at the insert, and free when it was looked for: its workflow was pruned in between.
        sent = [_sent_row(op) for op in ops if not isinstance(op, StartOp)]
        if sent:
            [[text]] = yield from self._ask(caller, "send", rows=as_json(sent).decode())
            signals = [(index, op) for index, op in enumerate(ops) if isinstance(op, SignalOp)]
            cancels = [(index, op.workflow_id) for index, op in enumerate(ops) if isinstance(op, CancelOp)]
            note_signals(text.encode(), signals, outcomes)
            note_cancels(text.encode(), cancels, outcomes, retry=False)
        return outcomes

    def _ask(self, caller: Caller, name: str, **values: str) -> Script[Rows]:
        statement = self._database.sql[name]
        parameters = {parameter: values[parameter] for parameter in statement.parameters}
        return (yield from self._carry_out(caller, statement.sql(), parameters))

    def _carry_out(self, caller: Caller, text: str, parameters: dict[str, str]) -> Script[Rows]:
        try:
            return (yield text, parameters)
        except Exception as error:
            refusal = _refusal(error, caller, self._database.name)
            if refusal is None:
                raise
            raise refusal from error


@functools.cache
def _known() -> list[Migration]:
    return known_migrations()


def _sent_row(op: SignalOp | CancelOp) -> SentRow:
    if isinstance(op, CancelOp):
        return SentRow(op.workflow_id, "cancel")
    return SentRow(op.workflow_id, "signal", op.name, op.token, op.payload)


def _in_text(call: Call) -> tuple[str, dict[str, str]]:
    """A call of the store's own, all of whose parameters are json, with text in and out."""
    text = _NUMBER.sub(r"$\1::text::json", call.statement.sql())
    if not text.lstrip().startswith("INSERT"):
        text = f"SELECT ({text.rstrip().rstrip(';')})::text"
    values = [b"" if value is None else value for value in call.values]
    return text, {name: value.decode() for name, value in zip(call.statement.parameters, values, strict=True)}


def _refusal(error: Exception, caller: Caller, database: str) -> OnwardError | None:
    """What to raise for an error of the caller's driver; None if it is none."""
    moving = faults.moving_error(error, database=database)
    if moving is not None:
        return moving
    sqlstate: str | None = getattr(error, "sqlstate", None)
    text = " ".join(str(error).split()) or type(error).__name__
    if sqlstate is None and type(error).__module__.partition(".")[0] not in _DRIVERS:
        return None
    if sqlstate is None and any(kind.__name__ == "InterfaceError" for kind in type(error).__mro__):
        return WrongConnection(f"tx= is {caller.title} that cannot be used here: {text}")
    moving = faults.moving_error(error, database=database)
    if moving is not None:
        return moving
    match sqlstate:
        case "25P01":
            return WrongConnection(
                f"tx= is {caller.title} without an open transaction, so nothing could be rolled back; {caller.cure}"
            )
        case "25P02":
            return WrongConnection(
                f"tx= is {caller.title} whose transaction has failed before: roll it back, and begin another one"
            )
        case "25006":
            return WrongConnection(
                f"tx= is {caller.title} that may only read: {text}; use a transaction that may write"
            )
        case "40001":
            return TransientStoreError(
                f"{database}: {sqlstate}: {text}; another transaction was in the way of this one, which is REPEATABLE READ or "
                f"SERIALIZABLE; {AGAIN}"
            )
        case faults.LOCK_NOT_AVAILABLE:
            return TransientStoreError(
                f"{database}: {sqlstate}: {text}; another transaction has started the same id and is not committed; {AGAIN}, "
                "or wait longer with a larger lock_timeout"
            )
    kind, words = faults.look_up(sqlstate)
    if sqlstate is None and isinstance(error, (psycopg.DataError, psycopg.ProgrammingError)):
        kind, words = "conflict", "the driver refuses a value"
    detail = f"{database}: {f'{sqlstate}: ' if sqlstate else ''}{text}; {words}"
    if kind == "conflict":
        return StoreConflict(f"{detail}; nothing was written")
    if kind == "fatal":
        return FatalStoreError(detail)
    return TransientStoreError(f"{detail}; {AGAIN}")
