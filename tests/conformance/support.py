"""What the store tests share: a database under test, its clock, and short ways to say what a worker does.

A test is an `async def` that takes `world`; `pytest_pyfunc_call` (imported by the conftests) runs it on a loop of its own and
closes what it opened. The next database adds a subclass of `World` and its name in `WORLDS`; where databases may differ, the
methods of `World` say so.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from onward._store.base import Leases, Store, Transfer
from onward._store.opening import open_store
from onward._store.operations import APPLIED, Fence, FinishOp, JournalOp, Op, Outcome, ParkOp, Started, StartOp
from onward._store.postgres.leases import PostgresLeases
from onward._store.records import Claimed, ClaimRequest, Entry, EntryKind, NewWorkflow, WorkerRow, WorkflowRow
from tests.postgres.roles import StoreOfRoles, drop_roles, login_name, make_roles
from tests.postgres.server import drop_schema, new_schema, url_with

T0 = 1_800_000_000_000_000
SECOND = 1_000_000


class FakeClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = T0

    def now_us(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


class World:
    """One empty database, and the stores and lease connections that a test opens on it."""

    name = ""
    keeps_any_text = True
    """Whether a payload may be something else than JSON; the type json refuses it."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = FakeClock()
        self.tmp_path = tmp_path
        self._stores: list[Store] = []
        self._leases: list[Leases] = []
        self._sides: list[Transfer] = []
        self._registered: list[tuple[Leases, str, int]] = []

    def url(self) -> str:
        raise NotImplementedError

    async def open(self) -> Store:
        """Another store object on the same database."""
        store = open_store(self.url(), self.clock)
        await store.open()
        self._stores.append(store)
        return store

    async def close(self) -> None:
        for leases in self._leases:
            leases.close()
        for side in self._sides:
            await side.close()
        for store in self._stores:
            await store.close()

    def worker(self, store: Store, worker_id: str = "w1", lease_s: float = 15) -> Leases:
        """Register a worker; returns its lease connection."""
        leases = store.leases()
        self._leases.append(leases)
        leases.register(worker_row(worker_id), int(lease_s * SECOND))
        self._registered.append((leases, worker_id, int(lease_s * SECOND)))
        return leases

    def side(self, store: Store) -> Transfer:
        """This database as a side of a move."""
        side = store.transfer()
        self._sides.append(side)
        return side

    def kill(self, leases: Leases) -> None:
        """Close a lease connection as a killed process leaves it, and let it be seen: most stores see it at once."""
        leases.close()

    def bury_all(self, leases: Leases, worker_id: str) -> int:
        """Bury as a lease thread does, again and again, until stalled workers have had their second chance."""
        first = leases.bury(worker_id)
        self.clock.advance(1.5)
        return first + leases.bury(worker_id)


class MemoryWorld(World):
    name = "memory"

    def url(self) -> str:
        return f"memory://{self.tmp_path.as_posix().replace('?', '')}"


class SqliteWorld(World):
    name = "sqlite"

    @property
    def path(self) -> Path:
        return self.tmp_path / "onward.db"

    def url(self) -> str:
        return f"sqlite:///{self.path}"


class PostgresWorld(World):
    name = "postgres"
    keeps_any_text = False

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        self.schema = new_schema()

    def url(self) -> str:
        return url_with(schema=self.schema)

    async def close(self) -> None:
        await super().close()
        drop_schema(self.schema)

    def kill(self, leases: Leases) -> None:
        """A server tells soon, but never sooner than two looks in a second, to an observer that is older than a lease: here
        the lease runs out instead (tests/unit/store/test_postgres_leases.py has the fast way). The living renew in time."""
        leases.close()
        self.clock.advance(1 + max(lease_us for _, _, lease_us in self._registered) / SECOND)
        for one, name, lease_us in self._registered:
            if isinstance(one, PostgresLeases) and one.is_connected:
                one.renew(name, lease_us)


class RolesWorld(PostgresWorld):
    """The same with the roles of `onward migrate --roles`: a worker's store writes for workers, a client's what clients write,
    and a reader's reads."""

    async def open(self) -> Store:
        if not self._stores:
            owner = open_store(self.url(), self.clock)
            await owner.open()
            await owner.close()
            make_roles(self.schema, owner.roles_sql())
        stores = []
        for kind in ("worker", "client", "reader"):
            store = open_store(url_with(schema=self.schema, user=login_name(self.schema, kind)), self.clock)
            await store.open()
            self._stores.append(store)
            stores.append(store)
        return cast(Store, StoreOfRoles(*stores))

    async def close(self) -> None:
        await super().close()
        drop_roles(self.schema)


WORLDS: dict[str, Callable[[Path], World]] = {
    "memory": MemoryWorld,
    "postgres": PostgresWorld,
    "postgres-roles": RolesWorld,
    "sqlite": SqliteWorld,
}


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test; close the worlds it was given."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def body() -> None:
        try:
            await pyfuncitem.obj(**arguments)
        finally:
            for value in arguments.values():
                if isinstance(value, World):
                    await value.close()

    asyncio.run(body())
    return True


def worker_row(worker_id: str) -> WorkerRow:
    return WorkerRow(
        id=worker_id, name="test", host="here", pid=1, queues=("default",), types=("flow",), code_version="c1"
    )


def new(workflow_id: str = "a", **changes: Any) -> NewWorkflow:
    values: dict[str, Any] = {
        "id": workflow_id,
        "type": "flow",
        "payload": "[[1],{}]",
        "digest": "d1",
        "seed": f"{abs(hash((workflow_id, 'seed'))):032x}",
    }
    return NewWorkflow(**{**values, **changes})


def entry(seq: int, key: str = "", kind: EntryKind = "step", **changes: Any) -> Entry:
    values: dict[str, Any] = {"finished_at": T0 + seq, "result": f"{seq}"}
    return Entry(seq=seq, key=key or f"step#{seq}", kind=kind, **{**values, **changes})


def request(worker: str = "w1", **changes: Any) -> ClaimRequest:
    values: dict[str, Any] = {
        "queue": "default",
        "types": ("flow",),
        "limit": 10,
        "version": "1/3.11",
        "code_version": "c1",
    }
    return ClaimRequest(worker=worker, **{**values, **changes})


def park(fence: Fence, seen: int = 0, *, until: int | None = None, waiting: bool = True, **changes: Any) -> ParkOp:
    return ParkOp(fence, seen, until, waiting, '[{"for":"test"}]', **changes)


async def one(store: Store, op: Op, *, retry: bool = False) -> Outcome:
    """Write one operation."""
    [outcome] = await store.write([op], retry=retry)
    return outcome


async def start(store: Store, workflow_id: str = "a", **changes: Any) -> None:
    outcome = await one(store, StartOp(new(workflow_id, **changes)))
    assert isinstance(outcome, Started)
    assert outcome.created


async def claim_one(store: Store, workflow_id: str = "a", worker: str = "w1", **changes: Any) -> Fence:
    """Claim exactly this workflow."""
    [claimed] = await store.claim(request(worker, only=(workflow_id,), **changes))
    return fence_of(claimed, worker)


def fence_of(claimed: Claimed, worker: str = "w1") -> Fence:
    return Fence(claimed.id, worker, claimed.epoch)


async def started_and_claimed(store: Store, workflow_id: str = "a", worker: str = "w1", **changes: Any) -> Fence:
    await start(store, workflow_id, **changes)
    return await claim_one(store, workflow_id, worker)


async def start_child(store: Store, parent: Fence, child_id: str) -> None:
    outcome = await one(store, StartOp(new(child_id, parent_id=parent.workflow_id), parent, watch=True))
    assert isinstance(outcome, Started)


async def complete(store: Store, workflow_id: str, worker: str = "w1", result: str = '"done"') -> None:
    fence = await claim_one(store, workflow_id, worker)
    assert await one(store, FinishOp(fence, "completed", result)) == APPLIED


async def row(store: Store, workflow_id: str = "a") -> WorkflowRow:
    found = await store.get(workflow_id)
    assert found is not None
    return found


async def record(store: Store, fence: Fence, *entries: Entry, **changes: Any) -> None:
    assert await one(store, JournalOp(fence, entries, **changes)) == APPLIED
