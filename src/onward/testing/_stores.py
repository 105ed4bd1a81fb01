"""The stores of an environment's worker and client: they pass the crash points, refuse everything after a death, and make
what is random elsewhere the same in each run.

Wrapped around the store of the environment's URL; what is not written here goes straight to it. The points at a commit
itself (`write:before-commit`, …) are passed by that store, through its probe.
"""

from __future__ import annotations

import contextvars
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import msgspec

from onward._store.base import Leases, Store
from onward._store.operations import Applied, Fence, JournalOp, Op, Outcome, StartOp
from onward._store.records import Claimed, ClaimRequest, Entry, WorkerRow


class Mortal(Protocol):
    """Whose store it is: a life of the worker, or a connection of the client."""

    def hit(self, point: str) -> None:
        """Pass a point; raises `Crashed` if it dies there, or is dead already."""
        ...

    def check(self) -> None:
        """Raise `Crashed` if it is dead."""
        ...

    def recorded(self, workflow_id: str, entry: Entry) -> None:
        """An entry is committed."""
        ...


class Seeds:
    """Random seeds of workflows, drawn from the environment's own: the n-th start of an id has the same in each run, a child
    always."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._starts: dict[str, int] = {}
        self._drawn: dict[str, str] = {}

    def apply(self, op: Op) -> Op:
        """The operation with the seed that belongs to it, however often it is written."""
        if not isinstance(op, StartOp):
            return op
        new = op.workflow
        seed = self._drawn.get(new.seed)
        if seed is None:
            number = 0
            if op.fence is None:
                number = self._starts[new.id] = self._starts.get(new.id, 0) + 1
            text = f"{self._seed}/{new.id}/{number}".encode()
            seed = self._drawn[new.seed] = hashlib.blake2b(text, digest_size=16).hexdigest()
        return msgspec.structs.replace(op, workflow=msgspec.structs.replace(new, seed=seed))


class MortalStore:
    """See base.Store; delegates to `inner`."""

    def __init__(self, inner: Store, owner: Mortal, seeds: Seeds) -> None:
        self._inner = inner
        self._owner = owner
        self._seeds = seeds
        run_transaction = getattr(inner, "run_transaction", None)
        if run_transaction is not None:
            self._run = run_transaction
            self.run_transaction = self._run_transaction

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def write(self, batch: Sequence[Op], *, retry: bool = False) -> list[Outcome]:
        """Pass the points of the committer around it, and tell of the entries."""
        owner = self._owner
        owner.hit("flush:before")
        ops = [self._seeds.apply(op) for op in batch]
        outcomes = await self._inner.write(ops, retry=retry)
        owner.hit("flush:after")
        for op, outcome in zip(ops, outcomes, strict=True):
            if isinstance(op, JournalOp) and type(outcome) is Applied:
                for entry in op.entries:
                    owner.recorded(op.fence.workflow_id, entry)
        return outcomes

    async def _run_transaction(
        self,
        fence: Fence,
        body: Callable[[Any], Any],
        finish: Callable[[Any], JournalOp],
        *,
        limit_s: float,
        context: contextvars.Context,
        **options: Any,
    ) -> Any:
        recorded: list[Entry] = []

        def noted(result: Any) -> JournalOp:
            op = finish(result)
            recorded[:] = op.entries
            return op

        self._owner.check()
        result = await self._run(fence, body, noted, limit_s=limit_s, context=context, **options)
        self._owner.check()
        for entry in recorded:
            self._owner.recorded(fence.workflow_id, entry)
        return result

    async def claim(self, request: ClaimRequest) -> list[Claimed]:
        """Not for the dead; one that dies at it never hears of its rows."""
        self._owner.check()
        rows = await self._inner.claim(request)
        self._owner.check()
        return rows

    async def reconcile(self, worker_id: str, held: Sequence[tuple[str, int]]) -> list[str]:
        """Not for the dead."""
        self._owner.check()
        return await self._inner.reconcile(worker_id, held)

    async def adopt_diverged(self, code_version: str) -> int:
        """Not for the dead."""
        self._owner.check()
        return await self._inner.adopt_diverged(code_version)

    def leases(self) -> Leases:
        """As the store's, not for the dead."""
        return MortalLeases(self._inner.leases(), self._owner)


class MortalLeases:
    """See base.Leases; delegates to `inner`."""

    def __init__(self, inner: Leases, owner: Mortal) -> None:
        self._inner = inner
        self._owner = owner

    def register(self, worker: WorkerRow, lease_us: int) -> None:
        """Not for the dead."""
        self._owner.check()
        self._inner.register(worker, lease_us)

    def renew(self, worker_id: str, lease_us: int) -> bool:
        """Not for the dead."""
        self._owner.check()
        return self._inner.renew(worker_id, lease_us)

    def retire(self, worker_id: str) -> None:
        """Not for the dead."""
        self._owner.check()
        self._inner.retire(worker_id)

    def bury(self, worker_id: str) -> int:
        """Not for the dead."""
        self._owner.check()
        return self._inner.bury(worker_id)

    def close(self) -> None:
        """What a process's end does as well: the proof of life is gone."""
        self._inner.close()


def mortal(inner: Store, owner: Mortal, seeds: Seeds) -> Store:
    """The store of a worker or client that a test may kill."""
    return cast(Store, MortalStore(inner, owner, seeds))
