"""`onward demo` on PostgreSQL: a schema that nobody has used, with Onward's tables and the pipeline's, and no trace of it after.

Loaded for such a URL only, for it imports psycopg. Reads and removes over a short connection of its own; touches no other
schema of the server.
"""

from __future__ import annotations

import secrets
import shlex
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
from psycopg import sql

from onward._store.postgres.address import parse_address
from onward._store.postgres.faults import classify
from onward.cli._demo.place import Found
from onward.errors import ConfigurationError

CLOCK_SLACK_US = 500_000
"""Instants in the journal are a lower bound of the server's clock, which a worker knows as well as the network lets it."""
_OWN_OPTIONS = ("schema", "poll_only")


@dataclass(frozen=True, slots=True)
class PostgresSchema:
    """A schema in the database of `url`, whose own `schema=` it replaces."""

    url: str
    schema: str
    kind: str = "schema"
    lease: str | None = "6s"
    """A worker that is new to the server judges another by its lease alone: the usual 15 s would be the longest scene."""

    @property
    def shown(self) -> str:
        """The URL without a password."""
        return parse_address(self.url).url

    @property
    def table(self) -> str:
        """In the same schema."""
        return f"{self.schema}.documents"

    def find(self, workflow_id: str) -> Found:
        """Read it with plain `psycopg`."""
        with self._connected() as database:
            database.read_only = True
            documents = database.execute(self._sql("SELECT path, digest, kind FROM {}.documents")).fetchall()
            row = database.execute(
                self._sql("SELECT status, result::text FROM {}.workflows WHERE id = %s"), (workflow_id,)
            ).fetchone()
            assert row is not None
            recorded = database.execute(
                self._sql(
                    "SELECT key, (extract(epoch FROM finished_at - clock_timestamp()) * 1000000)::float8 FROM {}.journal"
                    " WHERE workflow_id = %s AND kind = 'step' AND NOT struck AND error IS NULL"
                ),
                (workflow_id,),
            ).fetchall()
            latest = time.time() * 1e6 + CLOCK_SLACK_US
        return Found(documents, row[0], row[1], [(key, latest + ago) for key, ago in recorded])

    def commands(self, workflow_id: str) -> list[str]:
        """With onward and psql."""
        return [
            f"onward show {workflow_id} --url {shlex.quote(self.shown)}",
            self._psql(f"SELECT kind, count(*) FROM {self.table} GROUP BY kind"),  # noqa: S608  (a name of our own)
        ]

    def farewell(self) -> str:
        """With psql."""
        return self._psql(f"DROP SCHEMA {self.schema} CASCADE")

    def remove(self) -> None:
        """The schema with all that is in it."""
        with self._connected() as database:
            database.execute(self._sql("DROP SCHEMA IF EXISTS {} CASCADE"))

    def _connected(self) -> psycopg.Connection[Any]:
        """In a transaction that a `with` block commits or rolls back, and then closes."""
        return psycopg.connect(**parse_address(self.url).parameters, prepare_threshold=None)  # type: ignore[arg-type]

    def _sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(sql.Identifier(self.schema))

    def _psql(self, statement: str) -> str:
        base, _, query = self.shown.partition("?")
        return f"psql {shlex.quote(_joined(base, query))} -c {shlex.quote(statement)}"


def check_server(url: str) -> None:
    """Raise StoreError where the server is not to be reached, ConfigurationError where this user may not make a schema."""
    address = parse_address(url)
    try:
        with psycopg.connect(**address.parameters, prepare_threshold=None) as database:  # type: ignore[arg-type]
            row = database.execute(
                "SELECT current_user, current_database(), has_database_privilege(current_database(), 'CREATE')"
            ).fetchone()
    except psycopg.Error as error:
        raise classify(error, database=address.url) from error
    assert row is not None
    if not row[2]:
        raise ConfigurationError(
            f"{address.url}: {row[0]} may not create schemas, and the demo makes some; "
            f"run as the owner: GRANT CREATE ON DATABASE {row[1]} TO {row[0]}"
        )


def fresh_schema(url: str) -> PostgresSchema:
    """A schema in the database of a URL, under a name of its own."""
    schema = f"onward_demo_{secrets.token_hex(4)}"
    base, _, query = url.partition("?")
    kept = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != "schema"]
    return PostgresSchema(f"{base}?{urlencode([*kept, ('schema', schema)], quote_via=quote)}", schema)


def _joined(base: str, query: str) -> str:
    """The URL as libpq takes it."""
    kept = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] not in _OWN_OPTIONS]
    return f"{base}?{urlencode(kept, quote_via=quote)}" if kept else base
