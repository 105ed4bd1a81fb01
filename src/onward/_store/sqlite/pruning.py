"""Deletes finished trees, a bounded part in each transaction; see base.Store.prune.

A look on a reader's connection chooses, the write lock is taken only for what was found, and what an operator's retry has
brought back in between is left alone. A tree that is too large for one transaction is marked first (`onward_prunings`): from
then on nobody can retry anything in it, and only then is it looked through. Its deletion walks down to the leaves and deletes
from there upwards, each transaction going on where the last one stopped (`position`); the root, and with it the id, goes last.
Whoever prunes next goes on with a mark that somebody has left.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from onward._store.pruning import Place, PruneBatch, PruneRequest
from onward._store.statements import json_text, load_statements

SQL = load_statements("onward._store.sqlite", "prune")
NO_LIMIT = -1


class Parts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A workflow as a pruning sees it; `weight` is 1 and its journal's highest number, about what its deletion costs."""

    id: str
    weight: int
    is_old: bool = True


_roots = msgspec.json.Decoder(list[tuple[str, int, bool, int, bool]])
_parts = msgspec.json.Decoder(list[Parts])
_ids = msgspec.json.Decoder(list[str])


@dataclass(frozen=True, slots=True)
class Trees:
    """Whole trees, each a list of ids, to be deleted in one transaction."""

    trees: tuple[tuple[str, ...], ...]
    after: Place | None


@dataclass(frozen=True, slots=True)
class Mark:
    """A tree too large for one transaction, to be marked."""

    root: str
    after: Place


@dataclass(frozen=True, slots=True)
class Walk:
    """A marked tree, to be deleted from its leaves upwards."""

    root: str
    after: Place


@dataclass(frozen=True, slots=True)
class Unmark:
    """A marked tree that lives: somebody has retried a part of it before the mark."""

    root: str
    after: Place


Step = Trees | Mark | Walk | Unmark


def look(conn: sqlite3.Connection, request: PruneRequest) -> PruneBatch | Step:
    """What is to be done next; a PruneBatch where there is nothing to write."""
    marked = None if request.is_dry_run else conn.execute(SQL["first_mark"]).fetchone()
    if marked is not None:
        root, before, position = marked
        if position is not None or _is_whole_tree_old(conn, root, before):
            return Walk(root, request.after)
        return Unmark(root, request.after)
    roots = _roots.decode(_read(conn, "old_roots", **_filter(request)))
    trees: list[tuple[str, ...]] = []
    room = request.limit
    after = request.after
    for root, finished_at, is_wanted, weight, has_children in roots:
        if is_wanted:
            tree = [Parts(root, weight)]
            if has_children:
                tree = _tree(conn, root, request.before, NO_LIMIT if request.is_dry_run else request.limit + 1)
            weight = sum(parts.weight for parts in tree)
            is_old = all(parts.is_old for parts in tree)
            if is_old and weight > room and not request.is_dry_run:
                if trees:  # the next call begins with it
                    return Trees(tuple(trees), after)
                if _is_whole_tree_old(conn, root, request.before):
                    return Mark(root, after)
            elif is_old:
                trees.append(tuple(parts.id for parts in tree))
                room -= weight
        after = (finished_at, root)
    is_over = len(roots) < request.limit
    if trees and not request.is_dry_run:
        return Trees(tuple(trees), None if is_over else after)
    return _batch(sum(map(len, trees)), len(trees), None if is_over else after)


def carry_out(conn: sqlite3.Connection, step: Step, request: PruneRequest) -> PruneBatch:
    """Write a step, under the write lock."""
    match step:
        case Trees():
            return _delete_trees(conn, step, request.before)
        case Mark():
            conn.execute(SQL["mark"], {"root": step.root, "before": request.before})
            return PruneBatch(after=step.after)
        case Unmark():
            mark = conn.execute(SQL["read_mark"], {"root": step.root}).fetchone()
            if mark is not None and mark[1] is None:
                conn.execute(SQL["delete_mark"], {"root": step.root})
            return PruneBatch(after=step.after)
        case Walk():
            return _walk(conn, step, request.limit)


def _delete_trees(conn: sqlite3.Connection, step: Trees, before: int) -> PruneBatch:
    ids = [workflow_id for tree in step.trees for workflow_id in tree]
    revived = set(_ids.decode(_read(conn, "no_longer_old", ids=json_text(ids), before=before)))
    trees = [tree for tree in step.trees if revived.isdisjoint(tree)]
    count = _delete(conn, [workflow_id for tree in trees for workflow_id in tree])
    return _batch(count, min(count, len(trees)), step.after)


def _walk(conn: sqlite3.Connection, step: Walk, limit: int) -> PruneBatch:
    """Delete up to `limit` parts of a marked tree, in the order of a walk that comes to every child before its parent."""
    root = step.root
    mark = conn.execute(SQL["read_mark"], {"root": root}).fetchone()
    if mark is None:  # another process was faster
        return PruneBatch(after=step.after)
    position = mark[1] or root
    count = 0
    while limit > 0:
        leaves, inner = _first_leaves(conn, position, limit)
        if leaves:
            limit -= sum(parts.weight for parts in leaves)
            count += _delete_or_trim(conn, leaves, limit)
        elif inner is not None:
            position = inner
            limit -= 1
        else:
            parent, weight = conn.execute(SQL["parts_of"], {"id": position}).fetchone() or (None, 1)
            limit -= weight
            count += _delete_or_trim(conn, [Parts(position, weight)], limit)
            if limit >= 0 and position == root:
                conn.execute(SQL["delete_mark"], {"root": root})
                return _batch(count, min(count, 1), step.after)
            if limit >= 0:
                position = root if parent is None else parent
    conn.execute(SQL["move_mark"], {"root": root, "position": position})
    return _batch(count, 0, step.after)


def _first_leaves(conn: sqlite3.Connection, workflow_id: str, limit: int) -> tuple[list[Parts], str | None]:
    """The first children up to one that has children itself, as many as the limit allows (at least one); or else that one."""
    leaves: list[Parts] = []
    rows = conn.execute(SQL["children_of"], {"id": workflow_id})
    try:
        for child, weight, has_children in rows:
            if has_children:
                return leaves, child
            if leaves and weight > limit:
                break
            leaves.append(Parts(child, weight))
            limit -= weight
            if limit <= 0:
                break
    finally:
        rows.close()
    return leaves, None


def _delete_or_trim(conn: sqlite3.Connection, parts: Sequence[Parts], limit: int) -> int:
    """Delete these; what a single one has above the limit (a long journal) is left for the next transaction."""
    if limit < 0:
        [one] = parts
        conn.execute(SQL["trim_journal"], {"id": one.id, "seq": -limit - 1})
        return 0
    return _delete(conn, [one.id for one in parts])


def _delete(conn: sqlite3.Connection, ids: Sequence[str]) -> int:
    """Delete whole workflows; returns how many there were."""
    if not ids:
        return 0
    params = {"ids": json_text(sorted(ids))}
    for name in ("delete_journals", "delete_mail", "delete_waiters", "delete_retries"):
        conn.execute(SQL[name], params)
    return conn.execute(SQL["delete_workflows"], params).rowcount


def _batch(workflows: int, roots: int, after: Place | None) -> PruneBatch:
    return PruneBatch(workflows=workflows, children=workflows - roots, after=after)


def _tree(conn: sqlite3.Connection, root: str, before: int, limit: int) -> list[Parts]:
    return _parts.decode(_read(conn, "tree", root=root, before=before, limit=limit))


def _is_whole_tree_old(conn: sqlite3.Connection, root: str, before: int) -> bool:
    found = conn.execute(SQL["is_whole_tree_old"], {"root": root, "before": before}).fetchone()
    return bool(found[0])


def _filter(request: PruneRequest) -> dict[str, object]:
    after_at, after_id = request.after
    return {
        "before": request.before,
        "after_at": after_at,
        "after_id": after_id,
        "statuses": json_text(request.statuses) if request.statuses else None,
        "types": json_text(request.types) if request.types else None,
        "limit": request.limit,
    }


def _read(conn: sqlite3.Connection, name: str, **params: object) -> str:
    text: str = conn.execute(SQL[name], params).fetchone()[0]
    return text
