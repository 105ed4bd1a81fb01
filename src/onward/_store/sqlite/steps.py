"""Transactional steps: a step's body, its journal entry and one COMMIT, on a connection made for that one step.

Runs on the writer thread, which is what makes it exclusive: while the body runs, this process writes nothing else to the file,
and other processes wait for the lock; hence the time limit. The body may use savepoints but never ends the transaction: BEGIN,
COMMIT and ROLLBACK are refused on its connection. Whatever the body raises is rolled back and raised as it is: a user's error
is never taken for one of the store.
"""

from __future__ import annotations

import contextlib
import contextvars
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, TypeVar

from onward._store.base import TransactionTimedOut
from onward._store.operations import APPLIED, Fence, JournalOp
from onward._store.sqlite.connection import connect
from onward._store.sqlite.database import Database, roll_back
from onward._store.sqlite.faults import classify
from onward._store.sqlite.journal import apply_batch
from onward.errors import InTransactionalStep, LeaseLost, UsageError

T = TypeVar("T")

_inside: contextvars.ContextVar[Path | None] = contextvars.ContextVar("onward_transactional_step", default=None)
STEPS_PER_LOOK = 1000
"""Steps of SQLite's machine between two looks at the clock: some 20 µs."""
_CURE = (
    "Onward commits a transactional step together with its journal entry; use SAVEPOINT … RELEASE for a part that may fail, "
    "or raise to roll everything back"
)


def refuse_inside_step(path: Path) -> None:
    """Raise InTransactionalStep in a context that stems from a body which holds this file's only writer."""
    if _inside.get() == path:
        raise InTransactionalStep(
            f"a transactional step holds the only writer of {path}, so this call would wait for itself; "
            "use the connection given to the step (using(tx=connection), signal(…, tx=connection)), or make the call from an "
            "ordinary step"
        )


class StepConnection(sqlite3.Connection):
    """The connection given to a body: an ordinary one that cannot end its transaction."""

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(f"{what} is refused in a transactional step: {_CURE}")

    def commit(self) -> None:
        self._refuse("commit()")

    def rollback(self) -> None:
        self._refuse("rollback()")

    def close(self) -> None:
        self._refuse("close()")

    def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
        self._refuse("executescript(), which commits first,")

    def __enter__(self) -> NoReturn:
        self._refuse("'with connection:', which commits at its end,")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Literal[False]:
        return False

    def set_authorizer(self, authorizer_callback: Callable[..., int] | None) -> None:
        self._refuse("set_authorizer()")

    def set_progress_handler(self, progress_handler: Callable[[], int | None] | None, n: int) -> None:
        self._refuse("set_progress_handler()")

    def restrict(self, until: float) -> None:
        """From here on the body's statements are checked: none of them ends the transaction, none goes on after `until`.

        New statements are refused when they are compiled; running ones, and those that are run again and again from
        SQLite's cache, are counted by their steps.
        """

        def authorize(action: int, *_: str | None) -> int:
            is_allowed = action != sqlite3.SQLITE_TRANSACTION and time.monotonic() <= until
            return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY

        super().set_authorizer(authorize)
        super().set_progress_handler(lambda: time.monotonic() > until, STEPS_PER_LOOK)

    def lift(self) -> None:
        """The body has ended; undo what it set on the connection that would change our statements."""
        super().set_authorizer(None)
        super().set_progress_handler(None, 0)
        self.set_trace_callback(None)
        self.row_factory = None
        self.text_factory = str

    def really_close(self) -> None:
        super().close()


def run_step(
    database: Database,
    fence: Fence,
    body: Callable[[sqlite3.Connection], T],
    finish: Callable[[T], JournalOp],
    limit_s: float,
    context: contextvars.Context,
) -> T:
    """Fence, body, entry, COMMIT; called on the writer thread. See SqliteStore.run_transaction."""
    with database.shared.mutex, _connection(database) as conn:
        database.begin(conn)
        try:
            _check_fence(conn, database, fence)
            result = _run_body(conn, database, body, limit_s, context)
            operation = finish(result)
            _record(conn, database, operation)
            database.probe("step:before-commit")
            _commit(conn, database)
        except BaseException:
            roll_back(conn)
            raise
    database.probe("step:after-commit")
    database.shared.hub.publish()
    return result


@contextlib.contextmanager
def _connection(database: Database) -> Iterator[StepConnection]:
    """A connection of its own: what a body sets on it (functions, pragmas, temporary tables) ends with it."""
    try:
        conn = connect(database.path, busy_s=0.0, factory=StepConnection)
    except sqlite3.Error as error:
        raise classify(error, database=database.name) from error
    assert isinstance(conn, StepConnection)
    try:
        yield conn
    finally:
        conn.really_close()


def _run_body(
    conn: StepConnection,
    database: Database,
    body: Callable[[sqlite3.Connection], T],
    limit_s: float,
    context: contextvars.Context,
) -> T:
    started = time.monotonic()
    conn.restrict(started + limit_s)
    try:
        result = context.run(_run_marked, database.path, body, conn)
        _check_limit(started, limit_s)
    except BaseException as error:
        if isinstance(error, sqlite3.DatabaseError) and time.monotonic() - started > limit_s:
            _check_limit(started, limit_s, error)
        raise
    finally:
        conn.lift()
    if not conn.in_transaction:
        raise UsageError(
            f"the step's transaction was rolled back by one of its own statements, so nothing remains: {_CURE}"
        )
    return result


def _run_marked(path: Path, body: Callable[[sqlite3.Connection], T], conn: sqlite3.Connection) -> T:
    token = _inside.set(path)
    try:
        return body(conn)
    finally:
        _inside.reset(token)


def _check_limit(started: float, limit_s: float, cause: BaseException | None = None) -> None:
    took_s = time.monotonic() - started
    if took_s > limit_s:
        raise TransactionTimedOut(
            f"the transactional step ran for {took_s:.1f} s and was rolled back: it may hold the database's only writer for "
            f"{limit_s:g} s; do the slow part in an ordinary step before it"
        ) from cause


def _check_fence(conn: sqlite3.Connection, database: Database, fence: Fence) -> None:
    with _storage_errors(database):
        row = conn.execute(
            "SELECT 1 FROM onward_workflows WHERE id = ? AND worker = ? AND epoch = ?",
            (fence.workflow_id, fence.worker, fence.epoch),
        ).fetchone()
    if row is None:
        raise LeaseLost(
            f"workflow {fence.workflow_id!r} belongs to another worker now; the transactional step did not run"
        )


def _record(conn: sqlite3.Connection, database: Database, operation: JournalOp) -> None:
    with _storage_errors(database):
        [outcome] = apply_batch(conn, [operation], retry=False, now=database.now_us())
    if outcome is not APPLIED:
        raise LeaseLost(
            f"workflow {operation.fence.workflow_id!r} was taken from this worker; the step was rolled back"
        )


def _commit(conn: sqlite3.Connection, database: Database) -> None:
    try:
        conn.execute("COMMIT")
    except sqlite3.IntegrityError:
        raise  # a deferred constraint of the user's own tables
    except sqlite3.Error as error:
        raise classify(error, database=database.name, committing=True) from error


@contextlib.contextmanager
def _storage_errors(database: Database) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise classify(error, database=database.name) from error
