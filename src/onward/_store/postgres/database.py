"""One database as this process sees it: where it is, its clock, its statements, and how to connect.

Shared by a store's sessions, its listener and its lease connections. Nothing here keeps a connection.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from onward._store.base import Clock
from onward._store.postgres.address import Address
from onward._store.postgres.serverclock import ServerClock
from onward._store.postgres.statements import Call, Statement, compile_statements


class Database:
    """A schema in a PostgreSQL database.

    Args:
        address: the parsed URL.
        clock: stands for the server's clock (tests).
        probe: called around commits, where fault tests kill the process.
    """

    def __init__(
        self, address: Address, *, clock: Clock | None = None, probe: Callable[[str], None] | None = None
    ) -> None:
        self.probe = probe or _no_probe
        self.address = address
        self.name = address.url
        self.parameters: dict[str, Any] = {**address.parameters, "autocommit": True, "prepare_threshold": None}
        """How every connection is made: it commits each statement by itself, and prepares none by itself."""
        self.clock = ServerClock(clock)
        self.prepares = not address.is_poll_only and clock is None
        """Whether statements are prepared on the server. With a test's clock in them each text is another one."""
        self.channel = f"onward:{address.schema}"
        self.voice = secrets.token_hex(8)
        """What our own notifications say, so that we know them."""

    @functools.cached_property
    def sql(self) -> Mapping[str, Statement]:
        """All statements by name, made when the first is needed: a URL is parsed by commands that never connect."""
        return compile_statements(self.address.quoted_schema, self.clock)

    @property
    def settings(self) -> list[Call]:
        """What a new session runs first."""
        return [] if self.address.is_poll_only else [self.sql["pin_session"].bind()]

    def opening(self) -> list[Call]:
        """How a transaction begins."""
        begin = [self.sql["begin"].bind()]
        return [*begin, self.sql["pin_transaction"].bind()] if self.address.is_poll_only else begin

    def whole(self, calls: list[Call]) -> tuple[list[Call], slice]:
        """One statement or several as a transaction of their own, and where their answers are."""
        if not self.address.is_poll_only:
            return calls, slice(0, len(calls))
        return [*self.opening(), *calls, self.sql["commit"].bind()], slice(2, 2 + len(calls))

    def observe(self, answer: bytes | None) -> None:
        """An answer that holds the server's clock."""
        if answer is not None:
            self.clock.observe(int(answer))

    def now_us(self) -> int:
        """A lower bound of the server's clock, never falling."""
        return self.clock.now_us()

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """A new connection for the event loop; raises psycopg.Error."""
        return await psycopg.AsyncConnection.connect(**self.parameters)

    def connect_blocking(self) -> psycopg.Connection[Any]:
        """A new connection for a thread; raises psycopg.Error."""
        return psycopg.connect(**self.parameters)


def _no_probe(point: str) -> None:
    """The probe of production."""
