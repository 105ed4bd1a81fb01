"""Where in the due index a claim begins to look, while dead entries pile up in front of the living ones.

Every claimed row leaves a dead entry in the index, at the very place where the next claim begins. Usually they are cleared away
at once. While any session keeps an old snapshot open they cannot be, and each claim would walk all of them: after a minute under
load, for hundreds of milliseconds. So when claims become slow, they begin at a floor: for each queue and priority the time up to
which everything due has been seen and taken, less some seconds for transactions that commit late. What nobody expects below a
floor (a `run_at` in the past, a start in a transaction that was open for long, a row that was locked) and priorities not yet
known are looked for beside the claims, on a reading session, for at most a twentieth of the time. Once that look is fast again,
claims look at everything again.

Only latency depends on this: a floor that is too high delays a row until the next look.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

SLOW_US, SLOW_ROW_US = 3_000, 100
"""A claim that takes the server longer than this, plus so much for each row taken, has walked through dead entries."""
FAST_US = 1_500
"""A look at everything that takes no longer ends the use of floors."""
SLACK_US = 2_000_000
SHARE = 20
SHORTEST_PAUSE_S = 0.25


class Look(msgspec.Struct, frozen=True, array_like=True):
    """What a claim or a look says of where it was: the server's clock, how long it took, and by priority the last `next_run_at`
    among the rows taken (of a claim), or the first among the claimable ones, due or not (of a look)."""

    now: int
    took_us: int
    times: dict[int, int]


@dataclass(slots=True)
class Floor:
    """One queue's."""

    times: dict[int, int] = field(default_factory=dict)
    """By priority, in microseconds."""
    next_look_at: float = 0.0
    is_looking: bool = False


class Floors:
    """The floors of one store's claims, by queue and quarantine.

    Args:
        found: called when a look has found due rows that no claim would have seen.
    """

    def __init__(self, found: Callable[[], None]) -> None:
        self._floors: dict[tuple[str, bool], Floor] = {}
        self._found = found
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, queue: str, alone: bool | None) -> dict[int, int] | None:
        """Where to begin, by priority; None: at the beginning of everything."""
        floor = None if alone is None else self._floors.get((queue, alone))
        return None if floor is None else floor.times

    def claimed(self, queue: str, alone: bool, look: Look, count: int, limit: int) -> None:
        """Learn from a claim: raise the floors, or begin to use them."""
        floor = self._floors.get((queue, alone))
        if floor is None:
            if look.took_us <= SLOW_US + count * SLOW_ROW_US:
                return
            floor = self._floors[queue, alone] = Floor()
        latest = look.now - SLACK_US
        if count < limit:  # everything due has been seen
            for priority in {*floor.times, *look.times}:
                floor.times[priority] = max(floor.times.get(priority, 0), latest)
        else:
            for priority, last in look.times.items():
                floor.times[priority] = max(floor.times.get(priority, 0), min(last, latest))

    def look_beside(self, queue: str, alone: bool, look: Callable[[], Awaitable[Look]]) -> None:
        """Look at everything, if it is time to; the task is owned until `close`."""
        floor = self._floors.get((queue, alone))
        if floor is None or floor.is_looking or time.monotonic() < floor.next_look_at:
            return
        floor.is_looking = True
        task = asyncio.get_running_loop().create_task(self._look(queue, alone, floor, look), name="onward-look")
        self._tasks.add(task)
        task.add_done_callback(self._looked)

    async def _look(self, queue: str, alone: bool, floor: Floor, look: Callable[[], Awaitable[Look]]) -> None:
        pause_s = SHORTEST_PAUSE_S
        try:
            seen = await look()
            pause_s = max(SHORTEST_PAUSE_S, seen.took_us / 1e6 * SHARE)
            if seen.took_us <= FAST_US:
                self._floors.pop((queue, alone), None)
            is_due = False
            for priority, first in seen.times.items():
                is_due = is_due or (first <= seen.now and first < floor.times.get(priority, seen.now))
                floor.times[priority] = min(first, floor.times.get(priority, first))
            if is_due:
                self._found()
        finally:
            floor.is_looking = False
            floor.next_look_at = time.monotonic() + pause_s

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the database is away: the next claim says so

    async def close(self) -> None:
        """End what is looking."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
