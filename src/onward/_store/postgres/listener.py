"""Hears the notifications of other processes while somebody subscribes, and notices when the connection has died silently.

One task a store, started with the first subscription. After each new LISTEN the subscribers are told once: what was committed
before it nobody else would tell them. A connection on which nothing was heard for a while is asked to notify itself; if that
does not come back it is dropped and made anew, with growing pauses. Nothing but latency depends on any of this.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

import psycopg

from onward._store.postgres.session import Session
from onward._store.postgres.statements import Call, statement
from onward.errors import FatalStoreError, StoreError

if TYPE_CHECKING:
    from onward._store.postgres.database import Database
    from onward._store.postgres.hub import Hub

PROBE_S = 10.0
"""Silence after which the connection is asked whether it still hears."""
ANSWER_S = 5.0
PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
_log = logging.getLogger("onward.store")


class Listener:
    """See the module's docstring."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listen = statement("listen", f'LISTEN "{database.channel}"', database.clock).bind()
        self.session = Session(database, self._settings, self._on_notify, self._on_lost)
        self._hub: Hub | None = None
        self._stirred = asyncio.Event()
        """Something was heard, or the connection was lost."""
        self._task: asyncio.Task[None] | None = None
        self._is_failing = False

    def start(self, hub: Hub) -> None:
        """Begin to listen for this hub; once is enough."""
        if self._task is None and not self._database.address.is_poll_only:
            self._hub = hub
            self._task = asyncio.get_running_loop().create_task(self._run(), name="onward-listen")

    async def close(self) -> None:
        """End the task and the connection; idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.session.close()

    def _settings(self) -> list[Call]:
        return [*self._database.settings, self._listen] if self._hub is not None else self._database.settings

    def _on_lost(self) -> None:
        self._stirred.set()

    def _on_notify(self, news: str) -> None:
        self._stirred.set()
        if news != self._database.voice and self._hub is not None:
            self._hub.heard()

    async def _run(self) -> None:
        pause = PAUSE_S
        while True:
            try:
                await self._hear()
                pause = PAUSE_S
            except FatalStoreError as error:
                self._say_failing(error)
                pause = LONGEST_PAUSE_S
            except StoreError as error:
                self._say_failing(error)
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _hear(self) -> None:
        """Listen on one connection until it is lost."""
        assert self._hub is not None
        session = self.session
        await session.run([self._listen])  # again where it was connected before anybody subscribed
        connection = session.connection_count
        self._hub.heard()
        self._say_well()
        tell = self._database.sql["tell"].bind(channel=self._database.channel, news=self._database.voice)
        while session.is_connected and session.connection_count == connection:
            self._stirred.clear()
            if await self._is_stirred_within(PROBE_S):
                continue
            await session.run([tell])
            if not await self._is_stirred_within(ANSWER_S):
                session.drop(psycopg.OperationalError("notifications no longer arrive"))

    async def _is_stirred_within(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await self._stirred.wait()
        except TimeoutError:
            return False
        return True

    def _say_failing(self, error: StoreError) -> None:
        if not self._is_failing:
            self._is_failing = True
            _log.warning("notifications are not heard now, so new work is found by polling: %s", error)

    def _say_well(self) -> None:
        if self._is_failing:
            self._is_failing = False
            _log.info("notifications are heard again")
