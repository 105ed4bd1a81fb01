"""Which workflows this worker holds: claims due rows into free slots, wakes by hints and by one precise timer.

One task claims, one reads mail for held executions. Hints (`Store.subscribe`) and the timer for the next due row decide
latency; a slow poll underneath makes a lost hint harmless. Each lease period, and after the database was away, the rows
that bear this worker's id are compared with what is really held, and the others are released.

Quarantine: a row whose runs have crashed two workers is claimed alone, when nothing else is held, so that it cannot take
neighbours along. A worker that is never idle makes itself so now and then if such rows are due.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from onward._engine.ahead import Ahead, read_histories
from onward._engine.runner import Runner
from onward._store.records import Claimed, ClaimRequest
from onward.errors import StoreError

if TYPE_CHECKING:
    from onward._engine.engine import Engine

log = logging.getLogger("onward.dispatcher")

POLL_S = 5.0
"""The slow poll under all hints: the most that a lost one costs."""
MAIL_INTERVAL_S = 0.01
"""At most this often are the mailboxes of held executions looked at."""
ADOPT_S = 1.0
"""Between two looks for rows that diverged elsewhere, while hints come; without hints there is the slow poll."""
SPACING_S = 0.003
"""Between two looks for due rows of a worker that holds some."""
STOP_PATIENCE_S = 5.0
"""How long a stopping worker waits after the grace for a database that does not take its writes."""
QUARANTINE_PATIENCE_S = 10.0
"""How long a due quarantined row waits before a busy worker stops claiming until it is empty."""


class Dispatcher:
    """Claims and holds executions for one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held: dict[str, Runner] = {}
        self._leaving_count = 0
        """How many of them only wait for the commit of their last operation."""
        self._ahead = Ahead(engine.options.slots // 2, engine.loop.time)
        self._is_beginning = False
        self._only = None if engine.options.only is None else set(engine.options.only)
        self._types = tuple(engine.options.workflows)
        self._queues = engine.options.queues
        self._hint = asyncio.Event()
        self._mail_hint = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self.tasks: list[asyncio.Task[None]] = []
        self._end_subscription: Callable[[], None] | None = None
        self._is_alone = False
        self._quarantine_since: float | None = None
        self._reconcile_at = 0.0
        self._adopt_at = 0.0
        self._adopted_at = 0.0
        self._may_be_due = True
        """Something has happened since claims last found nothing."""
        self._ask_at = 0.0
        """When to ask again for what is due next."""
        self._due_at: int | None = None
        """The answer, by the database's time."""
        self._failing: set[Callable[[], Awaitable[None]]] = set()
        """Which of the two loops met a database that cannot be used: the other one's luck is no end of it."""
        self.is_stopping = False
        self._seams = engine.options.seams
        self._is_resting = False
        self._is_reading_mail = False

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to claim; the tasks are owned until `stop`."""
        loop = self._engine.loop
        self._end_subscription = self._engine.store.subscribe(self.poke)
        self._reconcile_at = loop.time() + self._engine.options.lease_s
        self.tasks = [
            loop.create_task(self._guarded(self._claim_round), name="onward-claims"),
            loop.create_task(self._guarded(self._mail_round), name="onward-mail"),
        ]

    async def stop(self, grace_s: float) -> None:
        """Claim nothing more; wait for bodies within the grace, then give everything back. What a database that takes no
        writes does not take back soon is left for others to take over, as after a crash."""
        self.is_stopping = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        if self._end_subscription is not None:
            self._end_subscription()
        self._ahead.clear()
        for runner in list(self._held.values()):
            runner.wind_down()
        loop = self._engine.loop
        force = loop.call_later(grace_s, self._force_out)
        give_up = loop.call_later(grace_s + STOP_PATIENCE_S, self._give_up)
        try:
            while self._held:
                await self._emptied.wait()
        finally:
            force.cancel()
            give_up.cancel()

    def _force_out(self) -> None:
        for runner in list(self._held.values()):
            runner.wind_down(now=True)

    def _give_up(self) -> None:
        log.warning("%d workflows could not be given back; others will take them over", len(self._held))
        self.drop_all()

    def poke(self) -> None:
        """Something may be due, or may have come for a held execution."""
        self._hint.set()
        if self._held:
            self._mail_hint.set()

    def lease_renewed(self) -> None:
        """Bodies may begin again."""
        for runner in list(self._held.values()):
            runner.settle()
        self._hint.set()

    def also_take(self, workflow_id: str, queue: str) -> None:
        """Extend a limited worker's set by a child."""
        if self._only is not None:
            self._only.add(workflow_id)
            if queue not in self._queues:
                self._queues = (*self._queues, queue)

    def learn(self, types: tuple[str, ...]) -> None:
        """Serve these types from now on."""
        self._types = types
        self.poke()

    def serve(self, queue: str) -> None:
        """Serve this queue, too."""
        if queue not in self._queues:
            self._queues = (*self._queues, queue)
            self.poke()

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that are served now."""
        return self._queues

    @property
    def is_resting(self) -> bool:
        """Whether nothing is being claimed or read, and no hint has come: what goes on now is in `in_flight`."""
        is_mail_read = not self._held or not (self._is_reading_mail or self._mail_hint.is_set())
        return self._is_resting and not self._hint.is_set() and is_mail_read

    def in_flight(self) -> list[tuple[str, str]]:
        """(workflow id, step key) of every body that runs; the key is "" where an execution is held without one."""
        return [(runner.row.id, key) for runner in self._held.values() for key in (runner.steps.running or ("",))]

    @property
    def next_event_at(self) -> int | None:
        """When the first of the held executions has something to do by itself; the others' times are in the database."""
        times = [runner.next_event_at for runner in self._held.values()]
        return min((at for at in times if at is not None), default=None)

    def compare(self) -> None:
        """Compare what is held with the rows that bear this worker's id, now."""
        self._reconcile_at = 0.0
        self.poke()

    def time_moved(self) -> None:
        """The database's time has made a leap (tests move it): what the loop's own timers would do, had it passed."""
        self.poke()
        for runner in list(self._held.values()):
            runner.time_passed()

    def abandon(self) -> None:
        """End at once and write nothing, as in a crash."""
        self.is_stopping = True
        for task in self.tasks:
            task.cancel()
        if self._end_subscription is not None:
            self._end_subscription()
        self.drop_all()

    @property
    def held_count(self) -> int:
        """How many executions have begun and are in memory. Callable from any thread."""
        return len(self._held) - len(self._ahead)

    @property
    def held_ids(self) -> list[str]:
        """Ids of the executions in memory."""
        return list(self._held)

    def drop_all(self) -> None:
        """Forget every execution without a word to the database."""
        for runner in list(self._held.values()):
            runner.drop()

    def leaving(self) -> None:
        """A runner has submitted its last operation: its slot is free, so that a claim follows that flush at once."""
        self._leaving_count += 1
        self._ahead.left()
        self._hint.set()
        self._begin_soon()

    def released(self, runner: Runner, *, was_leaving: bool) -> None:
        """A runner has ended."""
        self._leaving_count -= was_leaving
        if self._held.get(runner.row.id) is not runner:
            return
        del self._held[runner.row.id]
        self._ahead.forget(runner.row.id)
        if not self._held:
            self._is_alone = False
            self._emptied.set()
        self._hint.set()
        self._begin_soon()

    # ------------------------------------------------------------------ tasks

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one of the two loops for ever; a database that is away costs a pause, then everything is compared anew."""
        while True:
            try:
                await work()
                self._say_well(work)
            except StoreError as error:
                self._say_failing(work, error)
                await asyncio.sleep(0.1 + 0.4 * self._engine.rng.random())
                self._reconcile_at = 0.0
                self._may_be_due = True

    async def _claim_round(self) -> None:
        loop, store = self._engine.loop, self._engine.store
        if loop.time() >= self._reconcile_at:
            await self._reconcile()
        self._ahead.give_back()
        if loop.time() >= self._adopt_at:
            self._adopted_at = loop.time()
            self._adopt_at = self._adopted_at + POLL_S
            if await store.adopt_diverged(self._engine.code_version):
                self._hint.set()
        if self._hint.is_set():
            self._hint.clear()
            self._adopt_at = min(self._adopt_at, self._adopted_at + ADOPT_S)
            self._may_be_due = True
            if len(self._queues) > 1 and self._has_room:  # one question saves as many claims as there are queues
                await self._ask()
                self._may_be_due = self._is_due
        if (self._may_be_due or self._is_due) and self._engine.lease.holds:
            if await self._claim():
                return
            self._may_be_due = False
            self._ask_at = 0.0
        await self._rest()

    @property
    def _has_room(self) -> bool:
        """Whether another row could be taken now."""
        return self._room > 0 and not self._is_alone and not self._drains_for_quarantine()

    @property
    def _free_slots(self) -> int:
        """How many more may begin."""
        return self._engine.options.slots - len(self._held) + self._leaving_count + len(self._ahead)

    @property
    def _room(self) -> int:
        """How many more rows may be claimed."""
        return max(0, self._free_slots - len(self._ahead)) + self._ahead.room()

    @property
    def _is_due(self) -> bool:
        """Whether, by what was last said, there is a row that is due."""
        return self._due_at is not None and self._due_at <= self._engine.now_us()

    async def _ask(self) -> None:
        """Ask when the next row is due; one in quarantine counts only while nothing is held."""
        self._ask_at = self._engine.loop.time() + POLL_S
        self._due_at = await self._engine.store.next_due(
            self._queues,
            self._types,
            self._engine.code_version,
            self._only_ids(),
            alone=False if self._held else None,
        )

    async def _rest(self) -> None:
        """Wait for a hint, or until the next row is due."""
        loop = self._engine.loop
        until = min(self._adopt_at, self._reconcile_at, self._ahead.gives_up_at or math.inf)
        if self._has_room:
            if loop.time() >= self._ask_at:
                await self._ask()
            until = min(until, self._ask_at)
            if self._due_at is not None:
                delay = max(0.0, (self._due_at - self._engine.now_us()) / 1e6)
                if not self._engine.lease.holds:
                    delay = max(delay, 0.05)
                until = min(until, loop.time() + delay)
        else:
            self._due_at = None
        looked_at = loop.time()
        self._is_resting = True
        self._tell_rest()
        try:
            async with asyncio.timeout(max(0.0, until - looked_at)):
                await self._hint.wait()
        except TimeoutError:
            return
        finally:
            self._is_resting = False
        if self._held:  # our own commits hint, too: a busy worker does not look again at each of them
            await asyncio.sleep(max(0.0, looked_at + SPACING_S - loop.time()))

    def _tell_rest(self) -> None:
        if self._seams is not None:
            self._seams.rested()

    async def _claim(self) -> bool:
        """Take what is due; True if there may be more. What is in quarantine waits until nothing else is there, or for so long
        that it was waited for."""
        if self._quarantine_since is not None and await self._claim_alone():
            return True
        return await self._claim_many() or (self._is_due and await self._claim_alone())

    async def _claim_many(self) -> bool:
        """Fill the free slots, queue after queue; True if one of them gave all that was asked for. An empty claim right after
        another would hold the database's writer just when what was claimed wants to commit."""
        if not self._has_room:
            return False
        may_be_more = False
        for queue in self._queues:
            room = self._room
            if room <= 0:
                break
            rows = await self._engine.store.claim(self._request(queue, room))
            may_be_more |= len(rows) == room
            if rows:
                await self._take(rows)
        return may_be_more

    async def _claim_alone(self) -> bool:
        """Claim one quarantined row if nothing else is held."""
        if self._held:
            return False
        for queue in self._queues:
            rows = await self._engine.store.claim(self._request(queue, 1, alone=True))
            if rows:
                self._is_alone = True
                self._quarantine_since = None
                log.warning(
                    "workflow %s was running in %d crashes of its worker; it runs alone now", rows[0].id, rows[0].crashes,
                    extra={"workflow_id": rows[0].id},
                )  # fmt: skip
                await self._take(rows)
                return True
        return False

    def _drains_for_quarantine(self) -> bool:
        since = self._quarantine_since
        return bool(self._held) and since is not None and self._engine.loop.time() - since > QUARANTINE_PATIENCE_S

    def _request(self, queue: str, limit: int, *, alone: bool = False) -> ClaimRequest:
        return ClaimRequest(
            worker=self._engine.worker_id,
            queue=queue,
            types=self._types,
            limit=limit,
            version=self._engine.version,
            code_version=self._engine.code_version,
            only=self._only_ids(),
            alone=alone,
        )

    def _only_ids(self) -> tuple[str, ...] | None:
        return None if self._only is None else tuple(sorted(self._only))

    async def _take(self, rows: Sequence[Claimed]) -> None:
        """Begin the claimed executions, as far as there are slots; histories are read after the claim has committed."""
        worker_id = self._engine.worker_id
        runners = {row.id: Runner(self._engine, row, self._engine.workflow(row.type)) for row in rows}
        self._held.update(runners)
        self._emptied.clear()
        self._ahead.add(runners)
        known = [row.id for row in rows if not row.is_fresh]
        try:
            loaded = await read_histories(self._engine.store, known) if known else {}
        except BaseException:  # nothing of these has begun: forget them, and let reconciliation release the rows
            for runner in runners.values():
                runner.drop()
            raise
        if worker_id != self._engine.worker_id:
            return  # declared dead meanwhile: drop_all has dropped these as well
        for row in rows:
            if row.is_fresh or row.id in loaded:
                self._ahead.loaded(runners[row.id], loaded.get(row.id))
            else:
                runners[row.id].drop()
        self._begin_ready()
        self._mail_hint.set()  # what came between claim and load has had its hint already

    def _begin_soon(self) -> None:
        """A slot is free: begin what was claimed ahead in the loop's next turn."""
        if len(self._ahead) and not self._is_beginning and not self.is_stopping:
            self._is_beginning = True
            self._engine.loop.call_soon(self._begin_ready)

    def _begin_ready(self) -> None:
        """Begin what is read, as far as there are slots."""
        self._is_beginning = False
        while not self.is_stopping and self._free_slots > 0 and (item := self._ahead.take()) is not None:
            runner, history = item
            if isinstance(history, Exception):
                runner.fail_certainly(history)
            else:
                runner.begin(history)
        if self._ahead.has_mail:
            self._ahead.has_mail = False
            self._mail_hint.set()  # it has had its hint already

    async def _read_mail(self, wanted: Sequence[tuple[str, int]]) -> None:
        """Hand new mail to the executions in memory; spoiled mail hurts its own workflow only, as above."""
        try:
            inboxes = await self._engine.store.mail(wanted)
        except StoreError:
            raise
        except Exception as error:
            runner = self._held.get(wanted[0][0])
            if len(wanted) == 1 and runner is not None:
                runner.fail_certainly(error)
            for one in wanted if len(wanted) > 1 else ():
                await self._read_mail([one])
            return
        for inbox in inboxes:
            runner = self._held.get(inbox.id)
            if runner is not None:
                runner.mail_arrived(inbox)

    async def _reconcile(self) -> None:
        """Release rows that bear this worker's id but are not held (a claim whose reply was lost)."""
        engine = self._engine
        self._reconcile_at = engine.loop.time() + engine.options.lease_s
        held = [(runner.row.id, runner.row.epoch) for runner in self._held.values()]
        for workflow_id in await engine.store.reconcile(engine.worker_id, held):
            log.warning("workflow %s was not really held; released", workflow_id, extra={"workflow_id": workflow_id})
        if self._held:
            due = await engine.store.next_due(
                self._queues, self._types, engine.code_version, self._only_ids(), alone=True
            )
            is_due = due is not None and due <= engine.now_us()
            self._quarantine_since = (self._quarantine_since or engine.loop.time()) if is_due else None

    async def _mail_round(self) -> None:
        """After a hint, or after a while without one: read what is new for the executions in memory."""
        is_due = False
        while not is_due:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._mail_hint.wait()
            self._mail_hint.clear()
            is_due = bool(self._held)
        self._is_reading_mail = True
        try:
            await self._read_news()
        finally:
            self._is_reading_mail = False
        self._tell_rest()
        await asyncio.sleep(MAIL_INTERVAL_S)

    async def _read_news(self) -> None:
        """Read the mail of those held executions whose rows say that there is some."""
        held, ahead = self._held, self._ahead
        signals = await self._engine.store.signals(self._engine.worker_id)
        behind = [one for key, n in signals.items() if (one := held.get(key)) is not None and n > one.inputs.seen]
        wanted = [(one.row.id, one.inputs.last_mail) for one in behind if one.row.id not in ahead]
        ahead.has_mail |= len(wanted) < len(behind)  # what is read once they begin may bring it, too
        if wanted:
            await self._read_mail(wanted)

    def _say_failing(self, work: Callable[[], Awaitable[None]], error: StoreError) -> None:
        if not self._failing:
            log.warning("the database cannot be used now; trying again until it can: %s", error)
        self._failing.add(work)

    def _say_well(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._failing == {work}:
            log.info("the database can be used again")
        self._failing.discard(work)
