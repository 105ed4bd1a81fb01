"""One pruning from its first batch to its last: what `client.repair.prune`, `onward prune` and a worker's retention share.

Every batch is a short transaction of the store's. Between two of them the database is left to others for longer than the
batch took, and batches that take long become smaller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from onward._store.base import Store
from onward._store.pruning import PruneBatch, PruneRequest
from onward.errors import OutcomeUnknown, TransientStoreError

MOST, LEAST = 500, 20
"""Parts (workflows and journal entries) deleted by one transaction."""
SHORT_S, LONG_S = 0.01, 0.05
"""A batch that took less lets the next one be larger, one that took more makes it smaller."""
REST = 2.0
"""The pause after a batch, in times of what it took."""
RETRY_S = 0.2


async def prune(
    store: Store,
    request: PruneRequest,
    *,
    patience_s: float = 0.0,
    told: Callable[[int], None] | None = None,
) -> PruneBatch:
    """Call `Store.prune` until there is nothing left to delete, and return the sums.

    `patience_s`: how long a database that is busy or away is asked again, in one batch. `told` hears the number of workflows
    deleted so far after each batch. Cancelled or failed in the middle, what was deleted stays deleted.
    """
    loop = asyncio.get_running_loop()
    workflows = children = 0
    limit = MOST // 5
    while True:
        began = loop.time()
        batch = await _patiently(store, msgspec.structs.replace(request, limit=limit), patience_s)
        took = loop.time() - began
        workflows += batch.workflows
        children += batch.children
        if told is not None:
            told(workflows)
        if batch.after is None:
            return PruneBatch(workflows=workflows, children=children)
        request = msgspec.structs.replace(request, after=batch.after)
        if took < SHORT_S:
            limit = min(limit * 2, MOST)
        elif took > LONG_S:
            limit = max(limit // 2, LEAST)
        await asyncio.sleep(0 if request.is_dry_run else took * REST)


async def _patiently(store: Store, request: PruneRequest, patience_s: float) -> PruneBatch:
    """One batch. One whose commit is unknown is asked for again: what it may have deleted is then found gone, uncounted."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + patience_s
    while True:
        try:
            return await store.prune(request)
        except (TransientStoreError, OutcomeUnknown):
            if loop.time() > give_up_at:
                raise
        await asyncio.sleep(RETRY_S)
