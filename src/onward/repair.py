"""`client.repair`: what operators do with the workflows of a database. `AsyncRepair` does the work, `Repair` is its blocking
face.

Made by the clients, as their attribute `repair`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onward._engine.pruning import prune
from onward._store.pruning import PruneRequest
from onward._store.records import FINAL
from onward.definitions import Workflow
from onward.errors import ConfigurationError
from onward.retry import Duration, seconds

if TYPE_CHECKING:
    from onward._engine.connection import Connection

PATIENCE_S = 10.0
"""How long a database that is busy or away is asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What `prune` has deleted, or, in a dry run, would delete.

    Attributes:
        workflows: how many workflows, children included.
        children: how many of them were below another one.
    """

    workflows: int
    children: int


class AsyncRepair:
    """What operators do with workflows, for asyncio code: `AsyncClient.repair`."""

    def __init__(self, connection: Callable[[], Awaitable[Connection]]) -> None:
        self._connection = connection

    async def prune(
        self,
        older_than: Duration,
        *,
        status: str | Iterable[str] = (),
        type: str | Workflow[..., Any] | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Delete workflows that finished long ago, with their journals.

        A workflow goes with all its descendants and never without them: when it and every one of them has finished longer
        ago than `older_than`. Children are not deleted by themselves. Work goes on meanwhile: the deletion is made of short
        transactions with pauses. Cancelled half-way, what was deleted stays deleted.

        Once a workflow is deleted its id is new: starting it again starts it. So let `older_than` be longer than the time in
        which anybody may send the same start again (a queue's redelivery window), or ask for the result.

        Args:
            older_than: seconds or timedelta since the end of the last one of the tree, by the database's clock.
            status: of the uppermost workflow: completed, failed, cancelled, or several of them; default all three.
            type: of the uppermost workflow: a workflow or a type name; default every one.
            dry_run: delete nothing, and count.

        Raises:
            ConfigurationError: a status that is not final, or no duration. StoreError: the database cannot be used now.
        """
        connection = await self._connection()
        connection.store.check_caller()
        request = prune_request(connection.store.now_us(), older_than, status, type, dry_run=dry_run)
        batch = await prune(connection.store, request, patience_s=PATIENCE_S)
        return Pruned(workflows=batch.workflows, children=batch.children)


class Repair:
    """What operators do with workflows, for blocking code: `Client.repair`."""

    def __init__(
        self, inner: Callable[[], AsyncRepair], call: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]
    ) -> None:
        self._inner = inner
        self._call = call

    def prune(
        self,
        older_than: Duration,
        *,
        status: str | Iterable[str] = (),
        type: str | Workflow[..., Any] | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Delete workflows that finished long ago, with their journals. See `AsyncRepair.prune`."""
        pruned: Pruned = self._call(lambda: self._inner().prune(older_than, status=status, type=type, dry_run=dry_run))
        return pruned


def prune_request(
    now: int,
    older_than: Duration,
    status: str | Iterable[str] = (),
    type: str | Workflow[..., Any] | None = None,
    *,
    dry_run: bool = False,
) -> PruneRequest:
    """What to ask the store; raises ConfigurationError."""
    statuses = (status,) if isinstance(status, str) else tuple(status)
    for name in statuses:
        if name not in FINAL:
            raise ConfigurationError(f"only finished workflows are deleted: {', '.join(sorted(FINAL))}; not {name!r}")
    if type is not None and not isinstance(type, (str, Workflow)):
        raise ConfigurationError(f"type takes a workflow or a type name, not {type!r}")
    types = () if type is None else (type if isinstance(type, str) else type.spec.name,)
    before = now - round(seconds(older_than, "older_than") * 1e6)
    return PruneRequest(before=before, statuses=statuses, types=types, is_dry_run=dry_run)
