"""Executions that are claimed before a slot is free for them, so that a busy worker need not wait for its claims.

A part of the dispatcher. How many there may be follows from how many have lately left: where executions come and go, the next
batch is claimed and read while the present one works; where they stay, nothing is claimed ahead, and no row waits here that
another worker could run. What has waited all the same, because the present ones have begun to stay, is given back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from onward._store.base import Store
from onward._store.records import Loaded
from onward.errors import StoreError

if TYPE_CHECKING:
    from onward._engine.runner import Runner

History: TypeAlias = Loaded | Exception | None
"""What was read of a claimed row, or why it cannot be read; None for a fresh one."""

LATELY_S = 0.05
"""As many are claimed ahead as have left in about this time."""
PATIENCE_S = 1.0
"""How long one waits for a slot before it is given back."""


class Ahead:
    """The held executions that have not begun: those being read, and those that wait for a slot.

    Args:
        most: the most that are claimed ahead.
        time: the loop's clock.
    """

    def __init__(self, most: int, time: Callable[[], float]) -> None:
        self._most = most
        self._time = time
        self._ids: set[str] = set()
        self._ready: deque[tuple[Runner, History, float]] = deque()
        self._left = 0.0
        """How many have left lately, each counting less with time."""
        self._left_at = time()
        self.has_mail = False
        """There is mail for some of them, which is read once they have begun."""

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, workflow_id: str) -> bool:
        return workflow_id in self._ids

    def left(self) -> None:
        """An execution is done."""
        self._left += 1.0

    def room(self) -> int:
        """How many more may be claimed ahead; none while more than half of them are there, so that claims stay large."""
        now = self._time()
        self._left *= math.exp((self._left_at - now) / LATELY_S)
        self._left_at = now
        most = min(self._most, int(self._left))
        return most - len(self._ids) if 2 * len(self._ids) <= most else 0

    def add(self, workflow_ids: Iterable[str]) -> None:
        """These are claimed; their histories are being read."""
        self._ids.update(workflow_ids)

    def loaded(self, runner: Runner, history: History) -> None:
        """Its history is there."""
        self._ready.append((runner, history, self._time()))

    def take(self) -> tuple[Runner, History] | None:
        """The next one that can begin; None if there is none."""
        while self._ready:
            runner, history, _ = self._ready.popleft()
            if not runner.is_dropped:
                self._ids.discard(runner.row.id)
                return runner, history
        return None

    def clear(self) -> None:
        """None of them begins any more: the worker stops."""
        self._ready.clear()
        self._ids.clear()

    def forget(self, workflow_id: str) -> None:
        """This one is gone."""
        self._ids.discard(workflow_id)

    @property
    def gives_up_at(self) -> float | None:
        """When the first of those that wait has waited too long."""
        return self._ready[0][2] + PATIENCE_S if self._ready else None

    def give_back(self) -> None:
        """Give back those that have waited too long, and claim nothing ahead until others have left."""
        since = self._time() - PATIENCE_S
        while self._ready and self._ready[0][2] <= since and (item := self.take()) is not None:
            item[0].wind_down()
            self._left = 0.0


async def read_histories(store: Store, workflow_ids: Sequence[str]) -> dict[str, History]:
    """Histories by id. A row that somebody has spoiled spoils the whole read: then each is read alone."""
    try:
        return {item.id: item for item in await store.load(workflow_ids)}
    except StoreError:
        raise
    except Exception as error:
        if len(workflow_ids) == 1:
            return {workflow_ids[0]: error}
    found: dict[str, History] = {}
    for workflow_id in workflow_ids:
        found.update(await read_histories(store, [workflow_id]))
    return found
