"""The lease thread's own connection: a worker's row and its proof of life, renewal, and the burial of dead workers.

Death is decided here and is final. A worker is dead if its lease has run out by the server's clock. Sooner, if the advisory lock
of its lease connection was seen free twice, a second or more apart, by this one observer, while nothing was renewed: the kernel
closes a killed process's connection at once. Such a lock also falls when an operator ends that connection, and all locks fall
when the server restarts; hence the second look, the missing renewal, and that server and observer must be up for longer than a
lease. In poll-only mode there is no lock, and the lease alone decides.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import psycopg

from onward._store.postgres.faults import classify, is_connection_lost
from onward._store.postgres.statements import Call, Value, as_json
from onward._store.records import WorkerRow
from onward._store.verdicts import CRASH_LIMIT, CRASHED
from onward.errors import ConfigurationError, StoreConflict

if TYPE_CHECKING:
    from onward._store.postgres.database import Database

LOCK_CLASS = 1_330_534_144
"""First key of every worker's advisory lock."""
LATE_US = 1_250_000
"""A renewal later than this is worth a look at the lock; renewals come every second."""
QUIET_US = 2_000_000
"""No worker is taken for dead by its lock if it has renewed within this time: two renewals."""
APART_US = 1_000_000
LOOK_US = 700_000
"""For so long a look is good enough where nobody is suspected: renewals look, too, every second."""
SWEEP_S = 5.0
"""Between two looks for running rows of dead or absent workers; at once after a death."""

Seen: TypeAlias = tuple[int, list[tuple[str, bool, bool, int]]]
"""The server's clock, and who is late: [id, is expired, is its lock free, renewed at]."""
_seen = msgspec.json.Decoder(Seen)


class PostgresLeases:
    """See base.Leases."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._conn: psycopg.Connection[Any] | None = None
        self._since = 0
        """When this connection was made, by the server's clock."""
        self._proofs: dict[str, int] = {}
        """Lock keys of the workers registered here."""
        self._unproven: set[str] = set()
        """Those whose lock this connection does not hold yet."""
        self._seen_free: dict[str, tuple[int, int]] = {}
        """Of workers whose lock was seen free: (renewed_at then, when first seen)."""
        self._sweep_at = 0.0
        self._seen: Seen | None = None
        """What the renewal has seen that was made since the last `bury`."""
        self._looked_at = 0

    def register(self, worker: WorkerRow, lease_us: int) -> None:
        """Take the lock, then insert the row: a row without its lock could look dead."""
        key = None if self._database.address.is_poll_only else random.SystemRandom().randrange(1, 2**31)
        if key is not None:
            self._proofs[worker.id] = key
            self._unproven.add(worker.id)
        try:
            self._write(
                "register",
                self._database.sql["register_worker"].bind(
                    id=worker.id, name=worker.name, host=worker.host, pid=worker.pid, code_version=worker.code_version,
                    queues=as_json(worker.queues), types=as_json(worker.types), lease=lease_us, key=key,
                ),
            )  # fmt: skip
        except BaseException as error:
            self._forget(worker.id)
            if isinstance(error, StoreConflict):
                raise ConfigurationError(
                    f"a worker with the id {worker.id!r} exists already; ids must be random"
                ) from error
            raise

    def renew(self, worker_id: str, lease_us: int) -> bool:
        """Extend the lease unless the worker is dead or gone."""
        call = self._database.sql["renew_lease"].bind(lease=lease_us, **self._looking(worker_id))
        [answer] = self._write("renew", call)
        if answer is None:
            return False
        self._seen = _seen.decode(answer)
        self._database.clock.observe(self._seen[0])
        return True

    def retire(self, worker_id: str) -> None:
        """Remove the row, then give up the lock."""
        self._write("retire", self._database.sql["retire_worker"].bind(id=worker_id))
        self._forget(worker_id)

    def bury(self, worker_id: str) -> int:
        """Mark the dead, release what they and absent workers held."""
        now, late = self._news(worker_id)
        dead: list[Call] = []
        seen_free: dict[str, tuple[int, int]] = {}
        for other, is_expired, is_free, renewed_at in late:
            known = self._seen_free.get(other)
            if is_free:
                seen_free[other] = known if known is not None and known[0] == renewed_at else (renewed_at, now)
            is_judged = is_free and now - seen_free[other][1] >= APART_US and now - renewed_at >= QUIET_US
            if is_expired or is_judged:
                dead.append(self._database.sql["mark_dead"].bind(id=other, is_free=is_judged, renewed_at=renewed_at))
        self._seen_free = seen_free
        if not dead and time.monotonic() < self._sweep_at:
            return 0
        self._sweep_at = 0.0 if dead else time.monotonic() + SWEEP_S
        if dead:
            self._looked_at = 0  # if they cannot be marked now, the next look finds them again
        return self._sweep(dead)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._conn is not None

    def sweep_soon(self) -> None:
        """Look for rows of the dead and absent at the next `bury`, not only from time to time."""
        self._sweep_at = 0.0

    def close(self) -> None:
        """Close the connection; the locks fall with it."""
        self._proofs.clear()
        self._unproven.clear()
        self._drop()

    # ------------------------------------------------------------------ burial

    def _news(self, worker_id: str) -> Seen:
        """Who is late: as the renewal just made has seen it, else by a look of its own, unless there was one just now."""
        seen, self._seen = self._seen, None
        since_look = self._database.now_us() - self._looked_at
        if seen is None and not self._seen_free and 0 <= since_look < LOOK_US:
            return self._looked_at, []
        if seen is None:
            [answer] = self._ask(self._database.sql["look_for_dead"].bind(**self._looking(worker_id)))
            seen = _seen.decode(answer or "")
        self._looked_at = seen[0]
        return seen

    def _looking(self, worker_id: str) -> dict[str, Value]:
        return {"id": worker_id, "since": self._connected_since(), "late": LATE_US, "class": LOCK_CLASS}

    def _sweep(self, dead: list[Call]) -> int:
        sql, probe = self._database.sql, self._database.probe
        if not dead and self._ask(sql["look_for_orphans"].bind()) == ["false"]:
            return 0
        with self._errors(committing=True):
            conn = self._connection()
            with conn.transaction():
                if self._database.address.is_poll_only:
                    _execute(conn, self._database, sql["pin_transaction"].bind())
                for call in dead:
                    _execute(conn, self._database, call)
                if dead:
                    _execute(conn, self._database, sql["forget_dead"].bind())
                answer = _execute(conn, self._database, sql["release_orphans"].bind(limit=CRASH_LIMIT))
                released, over = msgspec.json.decode(answer or "")
                if over:
                    _execute(conn, self._database, sql["lock_readers"].bind(ids=as_json(over)))
                    _execute(conn, self._database, sql["fail_crashed"].bind(ids=as_json(over), error=CRASHED))
                has_buried = bool(dead or released or over)
                if has_buried:
                    probe("bury:before-commit")
        if has_buried:
            probe("bury:after-commit")
        count: int = released + len(over)
        return count

    # ------------------------------------------------------------------ the connection

    def _ask(self, *calls: Call) -> list[str | None]:
        with self._errors():
            conn = self._connection()
            return [_execute(conn, self._database, call) for call in calls]

    def _write(self, point: str, call: Call) -> list[str | None]:
        with self._errors(committing=True):
            conn = self._connection()
            self._database.probe(f"{point}:before-commit")
            answer = _execute(conn, self._database, call)
            self._database.probe(f"{point}:after-commit")
        return [answer]

    @contextlib.contextmanager
    def _errors(self, *, committing: bool = False) -> Any:
        try:
            yield
        except psycopg.Error as error:
            if self._conn is None or self._conn.broken or is_connection_lost(error):
                self._drop()
            raise classify(error, database=self._database.name, committing=committing) from error

    def _connected_since(self) -> int:
        with self._errors():
            self._connection()
        return self._since

    def _connection(self) -> psycopg.Connection[Any]:
        conn = self._conn
        if conn is None or conn.broken:
            self._drop()
            conn = self._database.connect_blocking()
            try:
                conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
                for call in self._database.settings:
                    _execute(conn, self._database, call)
                self._since = int(_execute(conn, self._database, self._database.sql["read_own_clock"].bind()) or 0)
            except BaseException:
                conn.close()
                raise
            self._conn = conn
            self._unproven = set(self._proofs)
            self._seen_free.clear()
        for worker_id in list(self._unproven):  # the former connection's backend may still hold it: then next time
            call = self._database.sql["hold_proof"].bind(key=self._proofs[worker_id], **{"class": LOCK_CLASS})
            if _execute(conn, self._database, call) in ("t", "true", "True"):
                self._unproven.discard(worker_id)
        return conn

    def _forget(self, worker_id: str) -> None:
        key = self._proofs.pop(worker_id, None)
        if key is None:
            return
        was_held = worker_id not in self._unproven
        self._unproven.discard(worker_id)
        if was_held and self._conn is not None:
            with contextlib.suppress(psycopg.Error):
                _execute(
                    self._conn, self._database, self._database.sql["drop_proof"].bind(key=key, **{"class": LOCK_CLASS})
                )

    def _drop(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()


def _execute(conn: psycopg.Connection[Any], database: Database, call: Call) -> str | None:
    """Run a statement; the first value of its first row as text."""
    values = [None if value is None else value.decode() for value in call.values]
    with psycopg.RawCursor(conn) as cursor:
        cursor.execute(call.statement.sql().encode(), values)
        row = cursor.fetchone() if cursor.description else None
    if row is None or row[0] is None:
        return None
    value = row[0]
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
