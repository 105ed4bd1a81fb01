"""What `Store.prune` is asked and what it answers; the rules stand there, in base.py."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

Place: TypeAlias = tuple[int, str]
"""(finished_at, id) of a root: how far a pruning has come."""

START: Place = (-1, "")


class PruneRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which finished trees to delete, and how much of them in one call.

    `before`: all of a tree must have finished earlier, by the database's time. `statuses` and `types` are those of the root;
    empty: any. `limit` bounds the parts (workflows and journal entries) that one transaction deletes, and the roots that one
    call looks at. `after`: where the call before has left off. `is_dry_run`: count only.
    """

    before: int
    statuses: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    limit: int = 500
    after: Place = START
    is_dry_run: bool = False


class PruneBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What one call has deleted (or counted): so many workflows, `children` of them below a root. `after`: where the next
    call goes on; None when there is nothing more to look at."""

    workflows: int = 0
    children: int = 0
    after: Place | None = None
