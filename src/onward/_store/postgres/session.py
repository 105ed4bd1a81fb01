"""One connection of the event loop, on which statements travel in a pipeline: one conversation, one round trip.

psycopg makes the connection (addresses, TLS, authentication); after that its libpq wrapper is used directly, because a flush
should cost tens of microseconds of Python, not one millisecond. Who uses a session: the committer, the claims, the reads.
A session connects when it is first needed and again after a loss; it never tries anything twice.

An error leaves no transaction open: before the next conversation begins, the session has rolled back or dropped the connection.
A caller that is cancelled abandons its conversation, which then ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import psycopg
from psycopg import errors, pq

from onward._store.postgres import faults
from onward._store.postgres.statements import Call
from onward.errors import FatalStoreError, StoreError, TransientStoreError

if TYPE_CHECKING:
    from onward._store.postgres.database import Database

PATIENCE_S = 30.0
"""How long one conversation may take before the connection counts as lost."""

# As integers: members of an enumeration are looked up slowly, and each statement asks for some.
_OK = (int(pq.ExecStatus.TUPLES_OK), int(pq.ExecStatus.COMMAND_OK))
_SYNC, _ABORTED = int(pq.ExecStatus.PIPELINE_SYNC), int(pq.ExecStatus.PIPELINE_ABORTED)
_IDLE = int(pq.TransactionStatus.IDLE)
Raw: TypeAlias = "tuple[bytes, list[bytes | None], str | None]"
"""Text, values, name to prepare it under."""


class Refused(Exception):
    """The schema's function `refuse` ended the transaction: rows are not as the statement expected."""


class _Talk:
    """A conversation under way."""

    __slots__ = ("deadline", "error", "future", "is_committing", "prepares", "results")

    def __init__(self, future: asyncio.Future[None], *, is_committing: bool) -> None:
        self.future = future
        self.is_committing = is_committing
        self.prepares: deque[str | None] = deque()
        """For each command on its way, the name that it prepares, if that is what it does."""
        self.results: list[pq.abc.PGresult] = []
        self.error: psycopg.Error | None = None
        self.deadline = 0.0
        """By the loop's clock."""


class Session:
    """See the module's docstring.

    Args:
        database: what to connect to.
        settings: gives what is run on each new connection (default: the database's settings).
        on_notify: told of each notification that comes.
        on_lost: told when the connection is lost or closed.
    """

    def __init__(
        self,
        database: Database,
        settings: Callable[[], Sequence[Call]] | None = None,
        on_notify: Callable[[str], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._on_notify = on_notify
        self._lock = asyncio.Lock()
        self._conn: psycopg.AsyncConnection | None = None
        self._pg: pq.abc.PGconn | None = None
        self._fd = -1
        self._talk: _Talk | None = None
        self._watch: asyncio.TimerHandle | None = None
        """Looks after the conversation under way; one for many, because a timer for each would cost more than its sending."""
        self._prepared: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_writing = False
        self._is_closed = False
        self.connection_count = 0
        """How often it has connected: whoever remembers something about the server compares it."""
        self._on_lost = on_lost

    # ------------------------------------------------------------------ for users

    async def run(self, calls: Sequence[Call], *, commits: bool = False) -> list[bytes | None]:
        """Send the calls in one pipeline; returns the first value of each one's first row.

        `commits`: they end with COMMIT, or are one statement that writes and commits by itself.
        Raises StoreError, or Refused.
        """
        await self._acquire()
        try:
            return await self._converse(calls, commits=commits)
        finally:
            self._release()

    def hold(self) -> _Hold:
        """Keep the session for several conversations, one transaction for instance; what is open at the end is rolled back."""
        return _Hold(self)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that looks alive."""
        return self._pg is not None

    async def close(self) -> None:
        """Close the connection; a conversation under way is lost. Idempotent."""
        self._is_closed = True
        self.drop(psycopg.OperationalError("the store was closed"))

    async def connected(self) -> None:
        """Connect, if it is not."""
        await self._acquire()
        try:
            if self._pg is None:
                await self._connect()
        finally:
            self._release()

    # ------------------------------------------------------------------ turns

    async def _acquire(self) -> None:
        if self._is_closed:
            raise FatalStoreError(f"the store of {self._database.name} is closed; open it again")
        await self._lock.acquire()
        if self._is_closed:
            self._lock.release()
            raise FatalStoreError(f"the store of {self._database.name} is closed; open it again")

    def _release(self) -> None:
        """Give the turn on, once the connection is at rest."""
        talk = self._talk
        if talk is not None:  # its caller was cancelled
            talk.future = self._new_future()
            talk.future.add_done_callback(lambda _: self._release())
            return
        pg = self._pg
        if pg is not None and pg.transaction_status != _IDLE:
            rollback = self._send([(b"ROLLBACK", [], None)], commits=False)
            rollback.future.add_done_callback(lambda _: self._release())
            return
        self._lock.release()

    def _new_future(self) -> asyncio.Future[None]:
        # To ask for the running loop is a system call on CPython 3.11.
        return (self._loop or asyncio.get_running_loop()).create_future()

    async def _converse(self, calls: Sequence[Call], *, commits: bool) -> list[bytes | None]:
        if self._pg is None:
            await self._connect()
        prepares = self._database.prepares
        raw: list[Raw] = [
            (call.statement.wire, list(call.values), call.statement.name)
            if prepares
            else (call.statement.sql().encode(), list(call.values), None)
            for call in calls
        ]
        talk = self._send(raw, commits=commits)
        await talk.future
        if talk.error is not None:
            error = talk.error
            if error.sqlstate == faults.REFUSED:
                raise Refused
            if self._pg is not None and faults.is_connection_lost(error):
                self.drop(error)
            raise faults.classify(error, database=self._database.name, committing=talk.is_committing) from error
        return [result.get_value(0, 0) if result.ntuples else None for result in talk.results]

    # ------------------------------------------------------------------ the wire

    def _send(self, raw: Sequence[Raw], *, commits: bool) -> _Talk:
        talk = _Talk(self._new_future(), is_committing=commits)
        pg, loop = self._pg, self._loop
        if pg is None or loop is None:  # lost meanwhile
            talk.error = psycopg.OperationalError("the connection was lost")
            talk.future.set_result(None)
            return talk
        self._talk = talk
        talk.deadline = loop.time() + PATIENCE_S
        if self._watch is None:
            self._watch = loop.call_at(talk.deadline, self._look)
        fresh: set[str] = set()
        try:
            for text, values, name in raw:
                if name is None:
                    pg.send_query_params(text, values)
                else:
                    if name not in self._prepared and name not in fresh:
                        pg.send_prepare(name.encode(), text)
                        talk.prepares.append(name)
                        fresh.add(name)
                    pg.send_query_prepared(name.encode(), values)
                talk.prepares.append(None)
            pg.pipeline_sync()
            self._flush()
        except psycopg.Error as error:
            self.drop(error)
        return talk

    def _look(self) -> None:
        """Whether the conversation under way takes too long; without one the watch ends, until the next begins."""
        self._watch = None
        talk, loop = self._talk, self._loop
        if talk is None or loop is None:
            return
        if talk.deadline <= loop.time():
            self.drop(psycopg.OperationalError("no answer came in time"))
        else:
            self._watch = loop.call_at(talk.deadline, self._look)

    def _flush(self) -> None:
        assert self._pg is not None
        assert self._loop is not None
        if self._pg.flush():
            if not self._is_writing:
                self._is_writing = True
                self._loop.add_writer(self._fd, self._on_writable)
        elif self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._fd)

    def _on_writable(self) -> None:
        try:
            self._flush()
        except psycopg.Error as error:
            self.drop(error)

    def _on_readable(self) -> None:
        pg = self._pg
        if pg is None:
            return
        try:
            pg.consume_input()
            if self._is_writing:
                self._flush()
            if self._talk is not None:
                self._collect(pg, self._talk)
            if self._on_notify is not None:
                while (news := pg.notifies()) is not None:
                    self._on_notify(news.extra.decode())
        except psycopg.Error as error:
            self.drop(error)

    def _collect(self, pg: pq.abc.PGconn, talk: _Talk) -> None:
        while not pg.is_busy():
            result = pg.get_result()
            if result is None:
                continue  # the end of one command's results
            status = result.status
            if status == _SYNC:
                self._end(talk)
                return
            prepared = talk.prepares.popleft() if talk.prepares else None
            if status in _OK:
                if prepared is None:
                    talk.results.append(result)
                else:
                    self._prepared.add(prepared)
            elif status != _ABORTED and talk.error is None:
                talk.error = errors.error_from_result(result)

    def _end(self, talk: _Talk) -> None:
        self._talk = None
        if not talk.future.done():
            talk.future.set_result(None)

    def drop(self, error: psycopg.Error) -> None:
        """Give the connection up; whoever waits is told."""
        pg, self._pg = self._pg, None
        conn, self._conn = self._conn, None
        self._prepared = set()
        if pg is not None and self._loop is not None:
            with contextlib.suppress(Exception):  # the loop may be closed, the descriptor gone
                self._loop.remove_reader(self._fd)
            with contextlib.suppress(Exception):
                self._loop.remove_writer(self._fd)
        self._is_writing = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if conn is not None:
            conn.pgconn.finish()
        if self._on_lost is not None:
            self._on_lost()
        talk = self._talk
        if talk is not None:
            if talk.error is None:
                talk.error = error
            self._end(talk)

    async def _connect(self) -> None:
        try:
            conn = await self._database.connect()
        except psycopg.Error as error:
            raise faults.classify(error, database=self._database.name) from error
        if self._is_closed:
            conn.pgconn.finish()
            raise FatalStoreError(f"the store of {self._database.name} is closed; open it again")
        self._loop = asyncio.get_running_loop()
        self._conn, self._pg, self._fd = conn, conn.pgconn, conn.pgconn.socket
        self._prepared = set()
        conn.pgconn.enter_pipeline_mode()
        self._loop.add_reader(self._fd, self._on_readable)
        self.connection_count += 1
        settings = self._database.settings if self._settings is None else self._settings()
        if settings:
            try:
                await self._converse(settings, commits=False)
            except (StoreError, asyncio.CancelledError):
                self.drop(psycopg.OperationalError("the session could not be set up"))
                raise


class Converse(Protocol):
    """One round trip of a held session."""

    async def __call__(self, calls: Sequence[Call], *, commits: bool = False) -> list[bytes | None]:
        """As Session.run."""
        ...


class _Hold:
    """`async with session.hold() as converse:` several conversations in one turn, on one connection."""

    __slots__ = ("_connection", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._connection: psycopg.AsyncConnection | None = None

    async def __aenter__(self) -> Converse:
        await self._session._acquire()
        return self._converse

    async def _converse(self, calls: Sequence[Call], *, commits: bool = False) -> list[bytes | None]:
        session = self._session
        if self._connection is not None and session._conn is not self._connection:
            raise TransientStoreError(
                f"{session._database.name}: the connection was lost within a transaction; nothing was written, try again"
            )
        answers = await session._converse(calls, commits=commits)
        self._connection = session._conn
        return answers

    async def __aexit__(self, *_: object) -> None:
        self._session._release()
