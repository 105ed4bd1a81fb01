"""Deletes finished trees from memory; see base.Store.prune. A large tree goes at once: that takes no longer than finding it."""

from __future__ import annotations

from collections import defaultdict

from onward._store.memory.state import Row
from onward._store.pruning import PruneBatch, PruneRequest


def prune(rows: dict[str, Row], request: PruneRequest) -> PruneBatch:
    """Delete (or count) whole trees up to the limit, but at least one."""
    children: defaultdict[str, list[Row]] = defaultdict(list)
    roots: list[tuple[int, Row]] = []
    for row in rows.values():
        if row.new.parent_id is not None:
            children[row.new.parent_id].append(row)
        elif row.finished_at is not None and row.finished_at < request.before:
            roots.append((row.finished_at, row))
    roots.sort(key=lambda one: (one[0], one[1].new.id))
    workflows = trees = parts = 0
    after = request.after
    for finished_at, root in roots:
        place = (finished_at, root.new.id)
        if place <= request.after:
            continue
        tree = [root]
        for row in tree:  # grows while it is walked
            tree += children[row.new.id]
        if _is_wanted(root, request) and all((row.finished_at or request.before) < request.before for row in tree):
            weight = sum(1 + max(row.entries, default=0) for row in tree)
            if trees and parts + weight > request.limit and not request.is_dry_run:
                return PruneBatch(workflows=workflows, children=workflows - trees, after=after)
            workflows, trees, parts = workflows + len(tree), trees + 1, parts + weight
            if not request.is_dry_run:
                _delete(rows, {row.new.id for row in tree})
        after = place
    return PruneBatch(workflows=workflows, children=workflows - trees)


def _is_wanted(root: Row, request: PruneRequest) -> bool:
    return (not request.statuses or root.status in request.statuses) and (
        not request.types or root.new.type in request.types
    )


def _delete(rows: dict[str, Row], ids: set[str]) -> None:
    for workflow_id in ids:
        del rows[workflow_id]
    for row in rows.values():
        if row.waiters:
            row.waiters = [waiter for waiter in row.waiters if waiter not in ids]
