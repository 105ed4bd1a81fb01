"""StartOp: exactly one workflow an id, whoever starts it how often."""

from __future__ import annotations

from onward._store.operations import IdConflict, Started, StartOp
from tests.conformance.support import (
    SECOND,
    T0,
    World,
    claim_one,
    complete,
    new,
    one,
    row,
    start,
    start_child,
    started_and_claimed,
)


async def test_a_started_workflow_is_pending_and_due_now(world: World) -> None:
    store = await world.open()
    await start(store, tags='{"a":"b"}', queue="q", priority=3, partition="p", max_attempts=7)
    found = await row(store)
    assert (found.status, found.next_run_at, found.created_at, found.epoch) == ("pending", T0, T0, 0)
    assert (found.tags, found.queue, found.priority, found.partition, found.max_attempts) == (
        '{"a":"b"}',
        "q",
        3,
        "p",
        7,
    )
    assert (found.payload, found.digest, found.started_at, found.deadline) == ("[[1],{}]", "d1", None, None)


async def test_a_delay_and_a_time_move_the_first_run_and_no_deadline_runs_before_it(world: World) -> None:
    store = await world.open()
    await start(store, "a", delay_us=5 * SECOND, timeout_us=2 * SECOND)
    await start(store, "b", run_at=T0 + 9 * SECOND, delay_us=1, timeout_us=SECOND)
    a, b = await row(store, "a"), await row(store, "b")
    assert (a.next_run_at, a.deadline) == (T0 + 5 * SECOND, None)
    assert (b.next_run_at, b.deadline) == (T0 + 9 * SECOND, None)


async def test_an_equal_start_finds_the_workflow_and_says_it_was_there(world: World) -> None:
    store = await world.open()
    await start(store)
    again = await one(store, StartOp(new(seed="f" * 32)))
    assert again == Started("a", False, None, "pending")
    assert (await store.counts()) == {"pending": 1}


async def test_the_same_start_written_twice_says_created_twice(world: World) -> None:
    store = await world.open()
    operation = StartOp(new())
    assert await one(store, operation) == Started("a", True, None, "pending")
    assert await one(store, operation, retry=True) == Started("a", True, None, "pending")
    assert await store.counts() == {"pending": 1}


async def test_an_id_with_another_type_or_other_arguments_is_a_conflict_and_changes_nothing(world: World) -> None:
    store = await world.open()
    await start(store)
    before = await row(store)
    assert await one(store, StartOp(new(type="other", seed="1" * 32))) == IdConflict("a", "flow")
    assert await one(store, StartOp(new(digest="d2", seed="2" * 32))) == IdConflict("a", "flow")
    assert await row(store) == before


async def test_one_batch_may_start_many_and_name_an_id_twice(world: World) -> None:
    store = await world.open()
    batch = [StartOp(new(f"w{n}")) for n in range(50)]
    outcomes = await store.write([*batch, StartOp(new("w7", seed="0" * 32)), StartOp(new("w8", digest="x"))])
    assert outcomes[:50] == [Started(f"w{n}", True, None, "pending") for n in range(50)]
    assert outcomes[50:] == [Started("w7", False, None, "pending"), IdConflict("w8", "flow")]
    assert await store.counts() == {"pending": 50}


async def test_a_child_has_its_parent_and_a_second_start_finds_it(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    child = StartOp(new("a/c", parent_id="a"), parent, watch=True)
    assert await one(store, child) == Started("a/c", True, "a", "pending")
    again = StartOp(new("a/c", parent_id="a", seed="9" * 32), parent, watch=True)
    assert await one(store, again) == Started("a/c", False, "a", "pending")
    [found] = await store.children("a")
    assert (found.id, found.parent_id) == ("a/c", "a")


async def test_the_end_of_a_child_found_final_is_delivered_at_once_but_not_twice(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    await start_child(store, parent, "a/c")
    await complete(store, "a/c")
    again = StartOp(new("a/c", parent_id="a"), parent, watch=True)
    assert await one(store, again) == Started("a/c", True, "a", "completed")
    [inbox] = await store.mail([("a", 0)])
    assert [(mail.kind, mail.name, mail.payload) for mail in inbox.mail] == [("child", "a/c", '"done"')]


async def test_watching_a_stranger_brings_its_end_into_the_mailbox(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    await start(store, "stranger")
    found = await one(store, StartOp(new("stranger", seed="8" * 32, parent_id="a"), parent, watch=True))
    assert found == Started("stranger", False, None, "pending")
    await one(store, StartOp(new("stranger", seed="8" * 32, parent_id="a"), parent, watch=True))
    await complete(store, "stranger")
    [inbox] = await store.mail([("a", 0)])
    assert [(mail.name, mail.payload) for mail in inbox.mail] == [("stranger", '"done"')]
    assert inbox.signals == 1


async def test_watching_a_stranger_that_has_ended_delivers_its_end_and_wakes(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, "stranger")
    await complete(store, "stranger")
    parent = await started_and_claimed(store)
    outcome = await one(store, StartOp(new("stranger", seed="8" * 32), parent, watch=True))
    assert outcome == Started("stranger", False, None, "completed")
    [inbox] = await store.mail([("a", 0)])
    assert ([mail.name for mail in inbox.mail], inbox.signals) == (["stranger"], 1)


async def test_without_watch_a_stranger_is_only_found(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, "stranger")
    parent = await started_and_claimed(store)
    await one(store, StartOp(new("stranger", seed="8" * 32), parent))
    await complete(store, "stranger")
    [inbox] = await store.mail([("a", 0)])
    assert (inbox.mail, inbox.signals) == ([], 0)


async def test_the_seed_is_given_to_the_worker_and_to_nobody_else(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, seed="5eed" * 8)
    await claim_one(store)
    assert "5eed" not in repr(await row(store))
    assert not hasattr(await row(store), "seed")


async def test_starts_with_ids_of_their_own_keep_what_each_was_given(world: World) -> None:
    """More kinds of rows than fit into one statement, with texts that need care; in order of id, whatever order they come in."""
    store = await world.open()
    texts = ['["\\\\"]', '{"a":"b,{}\\""}', '"NULL"', "[1,\n2]"]
    ops = [
        StartOp(
            new(
                f"n-{999 - n}", payload=texts[n % 4], digest=f"d{n}", seed=f"{n:032}", queue=f"q{n % 2}", priority=n,
                partition=(None, "NULL", 'a"\\,{b}', "")[n % 4], tags='{"x":"\\"}"}' if n % 3 else None, delay_us=n * SECOND,
                run_at=T0 + SECOND if n % 5 == 4 else None, timeout_us=SECOND if n % 7 else None, max_attempts=n + 1,
            ),
            has_new_id=True,
        )
        for n in range(150)
    ]  # fmt: skip
    assert await store.write(ops) == [Started(op.workflow.id, True, None, "pending") for op in ops]
    for n, op in enumerate(ops):
        found, wanted = await row(store, op.workflow.id), op.workflow
        assert (found.payload, found.queue, found.priority, found.partition, found.tags, found.max_attempts) == (
            wanted.payload, wanted.queue, wanted.priority, wanted.partition, wanted.tags, wanted.max_attempts,
        )  # fmt: skip
        assert found.next_run_at == (T0 + SECOND if n % 5 == 4 else T0 + n * SECOND)
    assert await store.seed("n-999") == f"{0:032}"


async def test_an_id_that_should_be_new_and_is_not_is_found_and_all_others_are_started(world: World) -> None:
    """The very same start written twice says created twice; somebody else's is found, or is a conflict."""
    store = await world.open()
    same = StartOp(new("same", seed="1" * 32), has_new_id=True)
    await store.write([same, StartOp(new("other"))])
    batch = [
        StartOp(new("fresh"), has_new_id=True),
        same,
        StartOp(new("other", seed="2" * 32), has_new_id=True),
        StartOp(new("other", digest="d2", payload="[2]"), has_new_id=True),
    ]
    assert await store.write(batch) == [
        Started("fresh", True, None, "pending"),
        Started("same", True, None, "pending"),
        Started("other", False, None, "pending"),
        IdConflict("other", "flow"),
    ]
    assert await store.counts() == {"pending": 3}


async def test_a_large_batch_may_hold_what_is_there_what_conflicts_and_what_is_new(world: World) -> None:
    """Each is answered for itself, in the order of the batch, also where it names an id twice."""
    store = await world.open()
    await store.write([StartOp(new(f"w-{n}", type="flow" if n % 2 else "other")) for n in range(0, 60, 3)])
    batch = [StartOp(new(f"w-{n % 60}", seed=f"{n:032}")) for n in range(120)]
    outcomes = await store.write(batch)
    for n, outcome in enumerate(outcomes):
        number = n % 60
        if number % 6 == 0:
            assert outcome == IdConflict(f"w-{number}", "other")
        else:
            assert outcome == Started(f"w-{number}", n < 60 and number % 3 != 0, None, "pending")
    assert await store.counts() == {"pending": 60}
    fresh = [StartOp(new(f"x-{n}", priority=n)) for n in range(100)]
    assert await store.write(fresh) == [Started(f"x-{n}", True, None, "pending") for n in range(100)]
    assert [(await row(store, f"x-{n}")).priority for n in range(100)] == [*range(100)]
