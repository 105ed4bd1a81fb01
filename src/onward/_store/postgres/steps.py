"""Transactional steps: a step's body, its journal entry and one COMMIT, on a connection lent to that one body.

The body runs first, holding no lock of Onward's; then come the fence (the workflow's row, locked and compared), the entry, and
COMMIT, as the last statements. A `def` body runs in a thread with a blocking connection, an `async def` one on the loop with an
async one. Whatever the body raises is rolled back and raised as it is, with one exception: when the database itself could not
serialize the transaction, or broke a deadlock, the body is run again a few times in a new transaction.

A connection is used again after DISCARD ALL, so that nothing a body sets on it reaches the next one; in poll-only mode each body
gets a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from onward._store.base import TransactionTimedOut
from onward._store.operations import APPLIED, Fence, JournalOp
from onward._store.postgres.batch import FenceRow, sort
from onward._store.postgres.faults import REFUSED, classify
from onward._store.postgres.journal import plan_calls
from onward._store.postgres.statements import Call, as_json
from onward._store.postgres.stepconnection import CURE, AsyncStepConnection, AsyncStepCursor, StepConnection, StepCursor
from onward.errors import LeaseLost, UsageError

if TYPE_CHECKING:
    from onward._store.operations import Outcome
    from onward._store.postgres.database import Database

T = TypeVar("T")

LIMIT_S = 60.0
"""How long a body may take unless the step says otherwise: an open transaction keeps vacuum from everything."""
THREADS = 8
IDLE_CONNECTIONS = 4
TRIES = 6
"""Of a body whose transaction could not be serialized."""
_AGAIN = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


class StepRunner:
    """Runs bodies for one store; its connections end with `close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pool: ThreadPoolExecutor | None = None
        self._idle: list[StepConnection] = []
        self._idle_async: list[AsyncStepConnection] = []
        self._is_closed = False

    async def run(
        self,
        fence: Fence,
        body: Callable[[Any], Any],
        finish: Callable[[Any], JournalOp],
        *,
        limit_s: float,
        context: contextvars.Context | None,
        is_async: bool,
    ) -> Any:
        """Run `body(connection)` and record `finish(its result)`; see the module's docstring.

        `finish` is called on the loop for async bodies, else on the body's thread; it numbers the entry, so the execution's
        earlier entries must be committed and its next ones wait.
        Raises LeaseLost (nothing ran, or all was rolled back), TransactionTimedOut, StoreError before or at the commit
        (after OutcomeUnknown look into the journal: the entry is there exactly if the body's writes are), and whatever the
        body raised.
        """
        chosen = context if context is not None else contextvars.copy_context()
        task = _Task(self._database, fence, body, finish, limit_s, chosen)
        if is_async:
            return await self._run_async(task)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="onward-transaction")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run_blocking, task)

    async def close(self) -> None:
        """Close idle connections; bodies that still run keep theirs and close them at their end."""
        self._is_closed = True
        for conn in self._idle:
            conn.close()
        self._idle.clear()
        for one in self._idle_async:
            await one.close()
        self._idle_async.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _keeps(self, count: int) -> bool:
        return not self._is_closed and not self._database.address.is_poll_only and count < IDLE_CONNECTIONS

    # ------------------------------------------------------------------ blocking

    def _run_blocking(self, task: _Task) -> Any:
        for number in range(1, TRIES + 1):
            try:
                with self._errors():
                    conn = self._idle.pop() if self._idle else self._connect()
                try:
                    return self._try_blocking(conn, task)
                finally:
                    self._give_back(conn)
            except _AGAIN:
                if number == TRIES:
                    raise
            time.sleep(0.01 * number * random.random())
        raise AssertionError("unreachable")

    def _connect(self) -> StepConnection:
        conn = StepConnection.connect(**self._database.parameters)
        conn.cursor_factory = StepCursor
        return conn

    def _try_blocking(self, conn: StepConnection, task: _Task) -> Any:
        with self._errors():
            task.check_fence(_fetch(conn, task.look()))
            for text in task.opening():
                conn.execute(text)
        conn.is_lent = True
        started = time.monotonic()
        try:
            result = task.context.copy().run(task.body, conn)
            task.check_time(started)
        except psycopg.errors.QueryCanceled as error:
            task.check_time(started, error)
            raise
        finally:
            conn.is_lent = False
            conn.cursor_factory, conn.row_factory = psycopg.Cursor, tuple_row
        task.check_open(conn.info.transaction_status)
        with self._errors(task):
            task.check_mark(_fetch(conn, task.mark()))
        calls = task.closing(result)
        with self._errors(task):
            for call in calls:
                _fetch(conn, call)
        self._database.probe("step:before-commit")
        with self._errors(task, committing=True):
            conn.execute("COMMIT")
        self._database.probe("step:after-commit")
        return result

    def _give_back(self, conn: StepConnection) -> None:
        with contextlib.suppress(psycopg.Error):
            if not conn.closed:
                if conn.info.transaction_status != pq.TransactionStatus.IDLE:
                    conn.execute("ROLLBACK")
                if self._keeps(len(self._idle)):
                    conn.execute("DISCARD ALL")
                    conn.cursor_factory = StepCursor
                    self._idle.append(conn)
                    return
        with contextlib.suppress(psycopg.Error):
            conn.close()

    # ------------------------------------------------------------------ async

    async def _run_async(self, task: _Task) -> Any:
        for number in range(1, TRIES + 1):
            try:
                with self._errors():
                    conn = self._idle_async.pop() if self._idle_async else await self._connect_async()
                try:
                    return await self._try_async(conn, task)
                finally:
                    await asyncio.shield(self._give_back_async(conn))
            except _AGAIN:
                if number == TRIES:
                    raise
            await asyncio.sleep(0.01 * number * random.random())
        raise AssertionError("unreachable")

    async def _connect_async(self) -> AsyncStepConnection:
        conn = await AsyncStepConnection.connect(**self._database.parameters)
        conn.cursor_factory = AsyncStepCursor
        return conn

    async def _try_async(self, conn: AsyncStepConnection, task: _Task) -> Any:
        with self._errors():
            task.check_fence(await _fetch_async(conn, task.look()))
            for text in task.opening():
                await conn.execute(text)
        conn.is_lent = True
        started = time.monotonic()
        try:
            made: Awaitable[Any] = task.context.run(task.body, conn)
            inner = asyncio.get_running_loop().create_task(_awaited(made), context=task.context.copy())
            try:
                async with asyncio.timeout(task.limit_s):
                    result = await inner
            except TimeoutError as error:
                if time.monotonic() - started < task.limit_s:
                    raise  # the body's own
                task.check_time(started, error)
                raise
            finally:
                if not inner.done():
                    inner.cancel()
                    await asyncio.gather(inner, return_exceptions=True)
            task.check_time(started)
        except psycopg.errors.QueryCanceled as error:
            task.check_time(started, error)
            raise
        finally:
            conn.is_lent = False
            conn.cursor_factory, conn.row_factory = psycopg.AsyncCursor, tuple_row
        task.check_open(conn.info.transaction_status)
        await _to_the_end(self._close_async(conn, task, result))
        return result

    async def _close_async(self, conn: AsyncStepConnection, task: _Task, result: Any) -> None:
        with self._errors(task):
            task.check_mark(await _fetch_async(conn, task.mark()))
        calls = task.closing(result)
        with self._errors(task):
            for call in calls:
                await _fetch_async(conn, call)
        self._database.probe("step:before-commit")
        with self._errors(task, committing=True):
            await conn.execute("COMMIT")
        self._database.probe("step:after-commit")

    async def _give_back_async(self, conn: AsyncStepConnection) -> None:
        with contextlib.suppress(psycopg.Error):
            if not conn.closed:
                if conn.info.transaction_status != pq.TransactionStatus.IDLE:
                    await conn.execute("ROLLBACK")
                if self._keeps(len(self._idle_async)):
                    await conn.execute("DISCARD ALL")
                    conn.cursor_factory = AsyncStepCursor
                    self._idle_async.append(conn)
                    return
        with contextlib.suppress(psycopg.Error):
            await conn.close()

    # ------------------------------------------------------------------ errors

    @contextlib.contextmanager
    def _errors(self, task: _Task | None = None, *, committing: bool = False) -> Any:
        """Errors of Onward's own statements. Those of a deferred constraint at COMMIT are the user's."""
        try:
            yield
        except _AGAIN:
            raise
        except psycopg.Error as error:
            if error.sqlstate == REFUSED and task is not None:
                raise LeaseLost(
                    f"workflow {task.fence.workflow_id!r} was taken from this worker; the step was rolled back"
                ) from None
            if committing and isinstance(error, psycopg.IntegrityError):
                raise
            raise classify(error, database=self._database.name, committing=committing) from error


class _Task:
    """One body to be run, and the statements around it."""

    def __init__(
        self,
        database: Database,
        fence: Fence,
        body: Callable[[Any], Any],
        finish: Callable[[Any], JournalOp],
        limit_s: float,
        context: contextvars.Context,
    ) -> None:
        self._database = database
        self.fence = fence
        self.body = body
        self.limit_s = limit_s
        self.context = context
        self._finish = finish
        self._token = secrets.token_hex(8)

    def look(self) -> Call:
        """Whether the fence holds before anything is run."""
        fence = self.fence
        return self._database.sql["is_held"].bind(id=fence.workflow_id, worker=fence.worker, epoch=fence.epoch)

    def check_fence(self, answer: Any) -> None:
        """Raise LeaseLost unless it does."""
        if not answer:
            raise LeaseLost(
                f"workflow {self.fence.workflow_id!r} belongs to another worker now; the transactional step did not run"
            )

    def opening(self) -> list[bytes]:
        """SET takes no snapshot, so that the body may still choose its isolation level."""
        limit_ms = max(1, round(self.limit_s * 1000))
        texts = ("BEGIN", f"SET LOCAL onward_step.mark = '{self._token}'", f"SET LOCAL statement_timeout = {limit_ms}")
        return [text.encode() for text in texts]

    def closing(self, result: Any) -> list[Call]:
        """The fence and the entry; COMMIT follows."""
        operation = self._finish(result)
        outcomes: list[Outcome] = [APPLIED]
        fence, sql = self.fence, self._database.sql
        rows = as_json([FenceRow(fence.workflow_id, fence.worker, fence.epoch)])
        lock = sql["lock_step_or_refuse"].bind(fences=rows)
        return [lock, *plan_calls(self._database, sort([operation], None, outcomes)), sql["wait_for_disk"].bind()]

    def check_open(self, status: pq.TransactionStatus) -> None:
        """Raise UsageError if the body has ended the transaction."""
        if status == pq.TransactionStatus.INERROR:
            raise UsageError(
                "a statement of the step failed and its error was caught outside a savepoint, so its transaction can only be "
                f"rolled back: {CURE}"
            )
        if status != pq.TransactionStatus.INTRANS:
            self.check_mark(False)

    def mark(self) -> Call:
        """Whether the transaction is still the one that was begun for this body."""
        return self._database.sql["is_same_step"].bind(token=self._token)

    def check_mark(self, answer: Any) -> None:
        """Raise UsageError if it is another one."""
        if not answer:
            raise UsageError(f"the step's transaction was ended by one of its own statements: {CURE}")

    def check_time(self, started: float, cause: BaseException | None = None) -> None:
        """Raise TransactionTimedOut if the body took too long."""
        took_s = time.monotonic() - started
        if took_s >= self.limit_s:
            raise TransactionTimedOut(
                f"the transactional step ran for {took_s:.1f} s, longer than its limit of {self.limit_s:g} s, and was rolled "
                "back; do the slow part in an ordinary step before it, or give it a timeout="
            ) from cause


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do what must not be left half-way: whether the step is recorded would not be known. A cancellation that comes meanwhile
    comes too late: the body has ended."""
    task = asyncio.get_running_loop().create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()


async def _awaited(value: Awaitable[T]) -> T:
    return await value


def _values(call: Call) -> list[str | None]:
    return [None if value is None else value.decode() for value in call.values]


def _fetch(conn: psycopg.Connection[Any], call: Call) -> Any:
    with psycopg.RawCursor(conn, row_factory=tuple_row) as cursor:
        cursor.execute(call.statement.sql().encode(), _values(call))
        row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


async def _fetch_async(conn: psycopg.AsyncConnection[Any], call: Call) -> Any:
    async with psycopg.AsyncRawCursor(conn, row_factory=tuple_row) as cursor:
        await cursor.execute(call.statement.sql().encode(), _values(call))
        row = await cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]
