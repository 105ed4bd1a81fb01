"""The stores agree: random batches leave the same rows, journals, mail and outcomes on each of them.

The in-memory store is short enough to be read as the specification; this is the check that the statements say the same.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from onward._store.base import Store
from onward._store.operations import (
    CancelOp,
    FailAttemptOp,
    Fence,
    FinishOp,
    JournalOp,
    Op,
    ParkOp,
    ReleaseOp,
    RetryOp,
    SignalOp,
    StartOp,
)
from onward._store.records import StepRetry
from onward.errors import StoreConflict
from tests.conformance.support import SECOND, T0, WORLDS, World, entry, new, request

IDS = ("a", "b", "a/c", "b/c")
ids = st.sampled_from(IDS)
times = st.sampled_from([T0, T0 + SECOND, T0 + 3 * SECOND, T0 + 9 * SECOND])
errors = st.sampled_from(
    ['{"type":"E","message":"m"}', '{"type":"E","message":"m","seq":2}', '{"type":"E","message":"m","timed_out":true}']
)
HELD = "whoever holds it"
fences = st.builds(Fence, ids, st.sampled_from([HELD, HELD, HELD, "w0"]), st.integers(1, 3))
entries = st.lists(
    st.builds(
        entry, st.integers(1, 5), st.sampled_from(["s", "t"]), st.sampled_from(["step", "timer", "cancel", "timeout"])
    ),
    max_size=2,
    unique_by=lambda one: one.seq,
).map(tuple)
retries = st.lists(st.builds(StepRetry, st.sampled_from(["s", "t"]), st.integers(1, 3), times), max_size=1).map(tuple)


def start_op(workflow_id: str, digest: str, seed: str, fence: Fence | None, watch: bool, delay: int) -> StartOp:
    parent = fence.workflow_id if fence is not None and workflow_id.startswith(f"{fence.workflow_id}/") else None
    workflow = new(
        workflow_id, digest=digest, seed=seed * 32, parent_id=parent, delay_us=delay, timeout_us=delay or None
    )
    return StartOp(workflow, fence, watch)


operations: st.SearchStrategy[Op] = st.one_of(
    st.builds(
        start_op,
        ids,
        st.sampled_from(["d1", "d1", "d1", "d2"]),
        st.sampled_from("12"),
        st.none() | fences,
        st.booleans(),
        st.sampled_from([0, 0, SECOND]),
    ),
    st.builds(
        JournalOp,
        fences,
        entries,
        st.lists(st.integers(1, 6), max_size=2).map(tuple),
        st.sampled_from([(), ("s",)]),
        st.none(),
        st.sampled_from([None, "1", "2"]),
        st.booleans(),
    ),
    st.builds(
        ParkOp,
        fences,
        st.integers(0, 2),
        st.none() | times,
        st.booleans(),
        st.just("[]"),
        retries,
        st.sampled_from([None, 1, 2]),
        st.none() | times,
    ),
    st.builds(FinishOp, fences, st.just("completed"), st.just("1")),
    st.builds(
        FinishOp, fences, st.sampled_from(["failed", "cancelled"]), st.none(), errors, st.just(False), st.booleans()
    ),
    st.builds(
        FailAttemptOp,
        fences,
        errors,
        st.sampled_from([0, SECOND]),
        entries,
        st.lists(st.integers(1, 5), max_size=2).map(tuple),
        retries,
    ),
    st.builds(ReleaseOp, fences, st.sampled_from([0, SECOND]), st.none() | errors, st.sampled_from([None, "v1", "v2"])),
    st.builds(SignalOp, ids, st.just("go"), st.just("1"), st.sampled_from("tuv")),
    st.builds(CancelOp, ids),
    st.builds(RetryOp, ids),
)
# One operation a batch: the order within a batch is each store's own as far as operations of different executions go.
actions: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("write"), operations),
    st.tuples(st.just("write"), operations),
    st.tuples(st.just("write again"), operations),
    st.tuples(
        st.just("claim"), st.tuples(st.sampled_from(["w0", "w1"]), st.booleans(), st.sampled_from(["c1", "v1", "v2"]))
    ),
    st.tuples(st.just("claim"), st.tuples(st.just("w0"), st.just(False), st.just("c1"))),
    st.tuples(st.just("advance"), st.sampled_from([0.5, 1, 5])),
    st.tuples(st.just("reconcile"), st.lists(st.tuples(ids, st.integers(1, 3)), max_size=2)),
    st.tuples(st.just("adopt"), st.sampled_from(["v1", "v2"])),
)


PROLOGUE: list[tuple[str, Any]] = [
    ("write", StartOp(new("a"))),
    ("write", StartOp(new("b"))),
    ("claim", ("w0", False, "c1")),
    ("write", start_op("a/c", "d1", "1", Fence("a", HELD, 1), True, 0)),
    ("claim", ("w1", False, "c1")),
]


async def act(world: World, store: Store, kind: str, argument: Any) -> object:
    fence = getattr(argument, "fence", None)
    if fence is not None and fence.worker == HELD:
        found = await store.get(fence.workflow_id)
        if found is not None:
            argument = structs.replace(argument, fence=Fence(found.id, found.worker or "w0", found.epoch))
    match kind:
        case "write" | "write again":
            try:
                return await store.write([argument], retry=kind == "write again")
            except StoreConflict:
                return "conflict"
        case "claim":
            worker, alone, code_version = argument
            return await store.claim(request(worker, limit=2, alone=alone, code_version=code_version))
        case "advance":
            world.clock.advance(argument)
            return None
        case "reconcile":
            return sorted(await store.reconcile("w0", argument))
        case _:
            return await store.adopt_diverged(argument)


async def picture(store: Store) -> object:
    """Everything a store shows, but `updated_at`: a store may leave the row alone when it records entries only."""
    found = [await store.get(name) for name in IDS]
    rows = [None if one is None else structs.replace(one, updated_at=0) for one in found]
    journals = [await store.journal(name) for name in IDS]
    loaded = [
        (
            one.id,
            one.signals,
            one.entries,
            one.last_seq,
            sorted(one.retries, key=lambda retry: retry.key),
            [(m.kind, m.name, m.payload, m.error, m.created_at) for m in one.mail],
        )
        for one in await store.load(IDS)
    ]
    due = [await store.next_due(["default"], ["flow"], code, only) for code in ("c1", "v1") for only in (None, IDS)]
    return rows, journals, loaded, due, await store.counts()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(actions, min_size=5, max_size=40))
def test_random_histories_look_the_same_on_every_store(history: list[tuple[str, Any]]) -> None:
    async def body() -> None:
        with tempfile.TemporaryDirectory() as directory:
            worlds = [WORLDS[name](Path(directory)) for name in ("memory", "postgres", "sqlite")]
            stores = [await world.open() for world in worlds]
            try:
                for world, store in zip(worlds, stores, strict=True):
                    for worker in ("w0", "w1"):
                        world.worker(store, worker)
                for kind, argument in [*PROLOGUE, *history]:
                    seen = [
                        await act(world, store, kind, argument) for world, store in zip(worlds, stores, strict=True)
                    ]
                    assert all(one == seen[0] for one in seen), (kind, argument)
                    if kind != "advance":
                        pictures = [await picture(store) for store in stores]
                        assert all(one == pictures[0] for one in pictures), (kind, argument)
            finally:
                for world in worlds:
                    await world.close()

    asyncio.run(body())
