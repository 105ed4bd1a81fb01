"""The worker's lease: its own thread and connection, so that busy workflow code cannot make a living worker look dead.

Each beat renews the worker's row, looks for dead workers to take over from, and checks that the event loop still turns:
a loop that has been stuck past a limit is reported with the line that blocks it, and one stuck longer than the lease is
not covered up: renewal stops, and others may take over. `holds` is what every step body asks before it begins.

The thread never touches engine state: it tells the loop through `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from onward._engine.watchdog import describe_block
from onward._store.base import Leases, Store
from onward._store.records import WorkerRow
from onward._store.transfer import MOVING
from onward.errors import StoreError

log = logging.getLogger("onward.lease")

BEAT_S = 0.5
"""Between two looks for dead workers; half of the fastest promised notice (two looks, at least 1 s apart, on Postgres)."""
RENEW_S = 1.0
STUCK_WARNING_S = 1.0
"""A loop that has not turned for this long is reported."""
MARGIN = 0.2
"""Share of the lease at its end during which no body begins any more: it covers the time between the check and the effect."""


@dataclass(frozen=True, slots=True)
class LeaseEvents:
    """What the lease tells the engine, each called on the loop."""

    dead: Callable[[], None]
    """This worker was declared dead: drop everything and begin anew under another id."""
    buried: Callable[[int], None]
    """So many rows of dead workers were released and may be claimed."""
    renewed: Callable[[], None]
    """The lease holds again after it was in doubt."""
    failed: Callable[[BaseException], None]
    """The lease's thread has ended by an error that is none of the database: nobody renews any more."""


class LeaseKeeper:
    """Keeps one worker's lease.

    Args:
        store: gives the connection (`Store.leases`), opened in the thread.
        lease_s: length of the lease.
        events: called on the loop.
        watches_loop: report a loop that does not turn, and stop to renew for it.
    """

    def __init__(self, store: Store, lease_s: float, events: LeaseEvents, *, watches_loop: bool = True) -> None:
        self._store = store
        self._lease_s = lease_s
        self._events = events
        self._watches_loop = watches_loop
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.valid_until = 0.0
        """Until when, by this machine's monotonic clock, the lease is known to hold, the margin taken off."""
        self._asked_at: float | None = None
        """When the loop was asked to turn, until it does. The time is counted from the question: this thread may itself have
        waited for the database, and the whole process may have stood still."""
        self._beat_at: float | None = None
        """When the last beat began; None while there are none."""
        self._is_failing = False
        self._has_warned = False
        self._worker: WorkerRow | None = None

    @property
    def holds(self) -> bool:
        """Whether the lease is known to hold now, with a margin."""
        return time.monotonic() < self.valid_until

    @property
    def is_failing(self) -> bool:
        """Whether the database refused the last beat."""
        return self._is_failing

    @property
    def stuck_s(self) -> float:
        """For how long the loop has not turned, though it was asked to. Callable from any thread."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else max(0.0, time.monotonic() - asked_at)

    @property
    def silent_s(self) -> float:
        """How long ago the last beat began; 0 while there is no thread (before the start, between two ids, after the end).
        Callable from any thread."""
        beat_at = self._beat_at
        return 0.0 if beat_at is None else max(0.0, time.monotonic() - beat_at)

    async def start(self, worker: WorkerRow) -> None:
        """Register the worker and begin to renew; raises what the database says if it cannot be registered."""
        self._worker = worker
        self._stop.clear()
        registered: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(worker, registered), name="onward-lease", daemon=True)
        self._thread.start()
        await registered

    async def stop(self, *, retire: bool) -> None:
        """End the thread; `retire` removes the worker's row (a graceful stop), else it is left to expire."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._retires = retire
        self._stop.set()
        await asyncio.to_thread(thread.join)
        self.valid_until = 0.0

    _retires = False

    def _run(self, worker: WorkerRow, registered: asyncio.Future[None]) -> None:
        leases = self._store.leases()
        lease_us = round(self._lease_s * 1e6)
        try:
            try:
                asked = time.monotonic()
                leases.register(worker, lease_us)
                self._extend(asked)
            except BaseException as error:  # handed to whoever started the worker
                self._tell(_fail, registered, error)
                return
            self._tell(_succeed, registered)
            self._beat_until_stopped(leases, worker.id, lease_us, asked)
            if self._retires:
                leases.retire(worker.id)
        except StoreError as error:
            log.warning("the worker's row could not be removed and will expire: %s", error)
        except MOVING as error:
            self._tell(self._events.failed, error)
            with contextlib.suppress(StoreError):
                leases.retire(worker.id)
        except BaseException as error:  # without a lease this worker is of no use: it must end, and say why
            self._tell(self._events.failed, error)
        finally:
            self._beat_at = None
            leases.close()

    def _beat_until_stopped(self, leases: Leases, worker_id: str, lease_us: int, renewed_at: float) -> None:
        pause_s = 0.0  # the first look for the dead is at once: after a crash it is often the restarted one that looks
        while not self._stop.wait(pause_s):
            pause_s = BEAT_S
            self._beat_at = time.monotonic()
            stuck_for = self._watch_loop() if self._watches_loop else 0.0
            try:
                now = time.monotonic()
                if now - renewed_at >= RENEW_S - BEAT_S / 2 and stuck_for < self._lease_s:
                    if not leases.renew(worker_id, lease_us):
                        self.valid_until = 0.0
                        self._tell(self._events.dead)
                        return
                    renewed_at = now
                    self._extend(now)
                released = leases.bury(worker_id)
                if released:
                    self._tell(self._events.buried, released)
                self._say_well()
            except StoreError as error:
                if not self._is_failing:
                    self._is_failing = True
                    log.warning("the lease cannot be renewed now; no step begins once it is in doubt: %s", error)

    def _extend(self, asked_at: float) -> None:
        was_in_doubt = not self.holds
        self.valid_until = asked_at + self._lease_s * (1 - MARGIN)
        if was_in_doubt:
            self._tell(self._events.renewed)

    def _say_well(self) -> None:
        if self._is_failing:
            self._is_failing = False
            log.info("the lease is renewed again")

    def _watch_loop(self) -> float:
        """Ask the loop to turn; report it if it has not for too long. Returns for how long it has not."""
        asked_at = self._asked_at
        if asked_at is None:
            self._asked_at = time.monotonic()
            self._has_warned = False
            self._tell(self._turned)
            return 0.0
        stuck_for = time.monotonic() - asked_at
        if stuck_for > STUCK_WARNING_S and not self._has_warned:
            self._has_warned = True
            log.warning(
                "the event loop has not turned for %.1f s: %s; blocking work belongs into a `def` step",
                stuck_for, describe_block(sys._current_frames().get(self._loop_thread)),
            )  # fmt: skip
        return stuck_for

    def _turned(self) -> None:
        self._asked_at = None

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: the process is ending without a stop
            self._stop.set()


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
