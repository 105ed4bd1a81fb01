"""Deletes finished trees; see base.Store.prune.

A look without locks chooses the trees. Then one transaction locks all their rows, in order of id and passing over what others
hold, looks again under the locks, deletes the trees of which it holds every row as old as wanted, and commits. A tree that is
larger than the limit goes in a transaction of its own, statement by statement: writers of other workflows never wait for it,
and an operator's retry of a workflow in it either comes first and keeps the tree, or waits and finds nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from onward._store.postgres.statements import Value, as_json
from onward._store.pruning import Place, PruneBatch, PruneRequest

if TYPE_CHECKING:
    from onward._store.postgres.database import Database
    from onward._store.postgres.session import Converse, Session

CHUNK = 5000
"""Ids in one statement: each takes well under a second."""
DELETES = ("delete_journals", "delete_mail", "delete_waiters", "delete_waiting", "delete_step_retries")
_roots = msgspec.json.Decoder(list[tuple[str, int, bool, int, bool]])
_ids = msgspec.json.Decoder(list[str])
_pairs = msgspec.json.Decoder(list[tuple[str, str]])


class Parts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A workflow as a pruning sees it; `weight` is 1 and its journal's highest number."""

    id: str
    weight: int
    is_old: bool = True


_parts = msgspec.json.Decoder(list[Parts])


@dataclass(frozen=True, slots=True)
class Trees:
    """Whole trees, each a list of ids that begins with its root, to be deleted in one transaction."""

    trees: tuple[tuple[str, ...], ...]
    after: Place | None


async def prune(session: Session, database: Database, request: PruneRequest) -> PruneBatch:
    """Delete (or count) the next trees; raises StoreError."""
    found = await _look(session, database, request)
    if request.is_dry_run or not found.trees:
        return _batch(sum(map(len, found.trees)), len(found.trees), found.after)
    return await _delete(session, database, found, request.before)


async def _look(session: Session, database: Database, request: PruneRequest) -> Trees:
    """What is to be deleted next."""
    roots = _roots.decode(await _ask(session, database, "old_roots", **_filter(request)) or b"[]")
    trees: list[tuple[str, ...]] = []
    room = request.limit
    after = request.after
    for root, finished_at, is_wanted, weight, has_children in roots:
        if is_wanted:
            tree = [Parts(root, weight)]
            if has_children:
                answer = await _ask(session, database, "tree", root=root, before=request.before)
                tree = _parts.decode(answer or b"[]")
            if tree and all(parts.is_old for parts in tree):
                weight = sum(parts.weight for parts in tree)
                if trees and weight > room and not request.is_dry_run:
                    return Trees(tuple(trees), after)  # the next call begins with it
                trees.append((root, *(parts.id for parts in tree if parts.id != root)))
                room -= weight
        after = (finished_at, root)
    return Trees(tuple(trees), None if len(roots) < request.limit else after)


async def _delete(session: Session, database: Database, found: Trees, before: int) -> PruneBatch:
    sql = database.sql
    ids = sorted(workflow_id for tree in found.trees for workflow_id in tree)
    async with session.hold() as converse:
        await converse(database.opening())
        locked: set[str] = set()
        for chunk in _chunks(ids):
            [answer] = await converse([sql["lock_old"].bind(ids=as_json(chunk), before=before)])
            locked.update(_ids.decode(answer or b"[]"))
        trees = await _still_whole(converse, database, found.trees, locked)
        count = 0
        for chunk in _chunks(sorted(workflow_id for tree in trees for workflow_id in tree)):
            rows = as_json(chunk)
            answers = await converse(
                [*(sql[name].bind(ids=rows) for name in DELETES), sql["delete_workflows"].bind(ids=rows)]
            )
            count += int(answers[-1] or 0)
        await converse([sql["commit"].bind()], commits=True)
    return _batch(count, len(trees), found.after)


async def _still_whole(
    converse: Converse, database: Database, trees: Sequence[tuple[str, ...]], locked: set[str]
) -> list[tuple[str, ...]]:
    """The trees of which every row is locked, those included that have come since the look."""
    children: defaultdict[str, list[str]] = defaultdict(list)
    for chunk in _chunks(sorted(locked)):
        [answer] = await converse([database.sql["children_of"].bind(ids=as_json(chunk))])
        for child, parent in _pairs.decode(answer or b"[]"):
            children[parent].append(child)
    return [
        tree
        for tree in trees
        if locked.issuperset(tree) and all(locked.issuperset(children[workflow_id]) for workflow_id in tree)
    ]


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[begin : begin + CHUNK] for begin in range(0, len(ids), CHUNK)]


def _batch(workflows: int, roots: int, after: Place | None) -> PruneBatch:
    return PruneBatch(workflows=workflows, children=workflows - roots, after=after)


def _filter(request: PruneRequest) -> dict[str, Value]:
    after_at, after_id = request.after
    return {
        "before": request.before,
        "after_at": after_at,
        "after_id": after_id,
        "statuses": as_json(request.statuses) if request.statuses else None,
        "types": as_json(request.types) if request.types else None,
        "limit": request.limit,
    }


async def _ask(session: Session, database: Database, name: str, **values: Value) -> bytes | None:
    calls, place = database.whole([database.sql[name].bind(**values)])
    return (await session.run(calls))[place][0]
