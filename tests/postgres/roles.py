"""The roles of `onward migrate --roles` on the test server: users that log in under them, and a store that uses all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from onward._store.base import Store
from onward._store.operations import CancelOp, Op, Outcome, RetryOp, SignalOp, StartOp
from onward._store.postgres.roles import role_name
from tests.postgres.server import server_url

KINDS = ("migrator", "worker", "client", "reader")
READS = frozenset({"get", "outcomes", "journal", "children", "counts", "workers", "list", "diagnose"})
CLIENTS = frozenset({"seed"})


def login_name(schema: str, kind: str) -> str:
    """A user that has this role and no other."""
    return f"{schema}_{kind}_user"


def make_roles(schema: str, script: str) -> None:
    """Run the script as psql would, and make a user for each role."""
    with psycopg.connect(server_url(), autocommit=True) as conn:
        conn.execute("SET client_min_messages = warning")
        conn.execute(script.encode())
        for kind in KINDS:
            role, user = sql.Identifier(role_name(schema, kind)), sql.Identifier(login_name(schema, kind))  # type: ignore[arg-type]
            conn.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE {}").format(user, role))


def drop_roles(schema: str) -> None:
    """Remove them, after the schema; those that were never made, too."""
    with psycopg.connect(server_url(), autocommit=True) as conn:
        conn.execute("SET client_min_messages = error")
        for kind in KINDS:
            for name in (login_name(schema, kind), f"{schema}_{kind}"):
                conn.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


class StoreOfRoles:
    """A Store of which each part has no more rights than its role: reads are a reader's, starts, signals, cancels and retries a
    client's, all else a worker's."""

    def __init__(self, worker: Store, client: Store, reader: Store) -> None:
        self._worker = worker
        self._client = client
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        owner = self._reader if name in READS else self._client if name in CLIENTS else self._worker
        return getattr(owner, name)

    async def close(self) -> None:
        """All of them."""
        for store in (self._worker, self._client, self._reader):
            await store.close()

    async def write(self, batch: Sequence[Op], *, retry: bool = False) -> list[Outcome]:
        """By the client where all of it is what clients write."""
        store = self._client if all(_is_of_clients(op) for op in batch) else self._worker
        return await store.write(batch, retry=retry)


def _is_of_clients(op: Op) -> bool:
    return isinstance(op, (SignalOp, CancelOp, RetryOp)) or (isinstance(op, StartOp) and op.fence is None)
