"""A few sessions for reads: as many conversations at a time as there are sessions, the rest wait in turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from onward._store.postgres.session import Session

if TYPE_CHECKING:
    from onward._store.postgres.database import Database


class SessionPool:
    """Up to `count` sessions, each connected when it is first needed."""

    def __init__(self, database: Database, count: int) -> None:
        self._sessions = [Session(database) for _ in range(count)]
        self._free = list(reversed(self._sessions))
        self._turns = asyncio.Semaphore(count)

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A session for one conversation; the one used last, so that an idle store keeps one connection busy, not all."""
        async with self._turns:
            session = self._free.pop()
            try:
                yield session
            finally:
                self._free.append(session)

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions:
            await session.close()
