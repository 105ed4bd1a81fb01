"""A worker's `retention=`: deletes workflows that finished longer ago, now and then, off the path of claims.

Every worker of a fleet may have it. They need not agree who does it: each looks at times of its own, far apart and at random,
and a look at a database where there is nothing to delete costs a read of an index's first rows.
"""

from __future__ import annotations

import asyncio
import logging
import random

from onward._engine.pruning import prune
from onward._store.base import Store
from onward._store.pruning import PruneRequest
from onward._store.quantities import counted, span
from onward.errors import StoreError

log = logging.getLogger("onward.retention")

LOOKS = 24
"""So many looks fall into one retention: a workflow outlives it by a few per cent."""
LEAST_S, MOST_S = 1.0, 3600.0
"""The least and the most time between two looks, on average."""
FIRST_S = 60.0
"""The first look comes within this time after the start: many workers do not live for an hour."""


class Retention:
    """One worker's.

    Args:
        store: the worker's.
        retention_s: how long finished workflows are kept.
        rng: spaces the looks.
    """

    def __init__(self, store: Store, retention_s: float, rng: random.Random) -> None:
        self._store = store
        self._retention_s = retention_s
        self._rng = rng
        self._interval_s = min(max(retention_s / LOOKS, LEAST_S), MOST_S)

    async def run(self) -> None:
        """Look for ever; cancel it to end it."""
        await asyncio.sleep(self._rng.random() * min(FIRST_S, self._interval_s))
        while True:
            await self._look()
            await asyncio.sleep(self._interval_s * (0.5 + self._rng.random()))

    async def _look(self) -> None:
        before = self._store.now_us() - round(self._retention_s * 1e6)
        try:
            pruned = await prune(self._store, PruneRequest(before=before))
        except StoreError as error:
            log.warning("old workflows could not be deleted now; trying again later: %s", error)
            return
        if pruned.workflows:
            count = counted(pruned.workflows, "workflow")
            log.info("deleted %s that had finished more than %s ago", count, span(self._retention_s))
