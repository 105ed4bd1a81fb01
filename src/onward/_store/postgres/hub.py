"""Tells the subscribers of one store that something was committed, and other processes through NOTIFY.

Commits of this store are told at once. For other processes a notification goes out at most every 10 ms, after the commit and on
another connection, so that no flush waits for it; what came in between is one notification. A hint only: whoever misses it
polls. The listener (listener.py) calls `heard` for those of others. In poll-only mode nothing can be heard, and subscribers are
told every second that something may have been committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from onward._store.subscriber import Subscriber
from onward.errors import StoreError

if TYPE_CHECKING:
    from onward._store.postgres.database import Database
    from onward._store.postgres.session import Session

SPACING_S = 0.01
POLL_S = 1.0
"""Between two hints in poll-only mode."""
_log = logging.getLogger("onward.store")


class Hub:
    """The subscribers of one store, and its voice.

    Args:
        database: whose channel is used.
        session: on which notifications are sent.
    """

    def __init__(self, database: Database, session: Session) -> None:
        self._database = database
        self._session = session
        self._subscribers: tuple[Subscriber, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._last_sent = 0.0
        self._has_news = False
        self._is_closed = False
        self._poll: asyncio.TimerHandle | None = None

    @property
    def has_subscribers(self) -> bool:
        """Whether anybody listens here."""
        return bool(self._subscribers)

    def publish(self, *, is_news: bool = True) -> None:
        """Tell everybody of a commit of this store; on the loop. Entries alone are no news: they make nothing due and end
        nothing."""
        if not is_news or self._is_closed:
            return
        self.heard()
        if self._database.address.is_poll_only:
            return
        self._has_news = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tell(), name="onward-notify")

    def heard(self) -> None:
        """Tell the subscribers here."""
        for subscriber in self._subscribers:
            subscriber.signal()

    def subscribe(self, loop: asyncio.AbstractEventLoop, notify: Callable[[], None]) -> Callable[[], None]:
        """Add a subscriber; returns what ends it."""
        subscriber = Subscriber(loop, notify)
        self._subscribers = (*self._subscribers, subscriber)
        if self._database.address.is_poll_only and self._poll is None:
            self._poll = loop.call_later(POLL_S, self._poll_again, loop)

        def unsubscribe() -> None:
            subscriber.is_over = True
            self._subscribers = tuple(one for one in self._subscribers if one is not subscriber)
            if not self._subscribers and self._poll is not None:
                self._poll.cancel()
                self._poll = None

        return unsubscribe

    def _poll_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._poll = loop.call_later(POLL_S, self._poll_again, loop)
        self.heard()

    async def close(self) -> None:
        """Send what is due to be sent, and nothing more."""
        self._is_closed = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _tell(self) -> None:
        loop = asyncio.get_running_loop()
        tell = self._database.sql["tell"].bind(channel=self._database.channel, news=self._database.voice)
        try:
            while self._has_news:
                pause = self._last_sent + SPACING_S - loop.time()
                if pause > 0:
                    await asyncio.sleep(pause)
                self._has_news = False
                self._last_sent = loop.time()
                try:
                    await self._session.run([tell])
                except StoreError as error:  # whoever should have heard it polls
                    _log.debug("other processes were not notified: %s", error)
        finally:
            self._task = None
