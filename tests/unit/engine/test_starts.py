"""The rows of new workflows, and their ids."""

from __future__ import annotations

import secrets
import time
from uuid import RFC_4122, UUID

import msgspec
import pytest

from onward import workflow
from onward._engine.replay.commands import StartChild
from onward._engine.specs import StartOptions
from onward._engine.starts import child_workflow, new_seed, new_seeds, new_workflow, new_workflow_id, new_workflow_ids
from onward._store.records import Claimed, NewWorkflow


@workflow
async def plain(value: int) -> None: ...


@workflow(queue="mails", max_attempts=3)
async def mails(value: int) -> None: ...


PARENT = Claimed("p", "parent", "{}", "d", "s", 1, 0, 0, 0, 5, 0, 1, 1, queue="big", priority=7, tags='{"a":"b"}')


def child(of: object, options: StartOptions | None = None) -> NewWorkflow:
    spec = of.spec  # type: ignore[attr-defined]  # a Workflow
    command = StartChild("k", 0, spec, options or StartOptions(), "p/k", "[1]", "digest", watch=True, confirm=False)
    return child_workflow(command, parent=PARENT, seed="seed")


def test_an_id_is_a_uuid_of_version_7_that_carries_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """36 characters, lower case, variant of RFC 4122, the first 48 bits milliseconds since 1970."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)
    made = UUID(new_workflow_id())
    assert (made.version, made.variant) == (7, RFC_4122)
    assert made.int >> 80 == 1_700_000_000_123
    assert str(made) == new_workflow_id()[:14] + str(made)[14:]


def test_ids_sort_by_the_time_of_their_making(monkeypatch: pytest.MonkeyPatch) -> None:
    """As text, from one millisecond to the next."""
    ids = []
    for millis in (0, 1, 255, 256, 1_700_000_000_000, 1_700_000_000_001, (1 << 48) - 1):
        monkeypatch.setattr(time, "time_ns", lambda millis=millis: millis * 1_000_000)
        ids.append(new_workflow_id())
    assert ids == sorted(ids)


def test_ids_of_one_millisecond_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is of a later part of the millisecond, and has 62 random bits."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    assert len({new_workflow_id() for _ in range(1000)}) == 1000


def test_all_random_bits_of_an_id_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random part fits its place: version and variant stay whole at both extremes."""
    for millis, byte, expected in (
        (10, b"\x00", "00000000-000a-7000-8000-000000000000"),
        (20, b"\xff", "00000000-0014-7000-bfff-ffffffffffff"),
    ):
        monkeypatch.setattr(time, "time_ns", lambda millis=millis: millis * 1_000_000)
        monkeypatch.setattr(secrets, "token_bytes", lambda count, byte=byte: byte * count)
        assert new_workflow_id() == expected


def test_ids_sort_in_the_order_of_their_making(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one batch and from one to the next, while the clock stands still or is set back a little."""
    ids: list[str] = []
    for millis in (5_000, 5_000, 4_900, 5_001, 6_500):
        monkeypatch.setattr(time, "time_ns", lambda millis=millis: millis * 1_000_000)
        ids += [*new_workflow_ids(10_000), new_workflow_id()]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(UUID(one).version == 7 and UUID(one).variant == RFC_4122 for one in ids)


def test_ids_follow_a_clock_that_is_set_back_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """By more than a second: else all ids would bear the wrong time until it comes round again."""
    for millis in (900_000, 500_000):
        monkeypatch.setattr(time, "time_ns", lambda millis=millis: millis * 1_000_000)
        assert UUID(new_workflow_id()).int >> 80 == millis


def test_a_seed_is_128_random_bits() -> None:
    """32 hex digits, never twice the same."""
    seeds = {new_seed() for _ in range(100)} | set(new_seeds(100))
    assert len(seeds) == 200
    assert all(len(bytes.fromhex(seed)) == 16 for seed in seeds)


@pytest.mark.parametrize(
    ("definition", "options", "queue"),
    [
        (plain, StartOptions(), "big"),
        (plain, StartOptions(queue="other"), "other"),
        (plain, StartOptions(queue="default"), "default"),
        (mails, StartOptions(), "mails"),
        (mails, StartOptions(queue="other"), "other"),
    ],
)
def test_a_child_that_names_no_queue_goes_to_its_parents(definition: object, options: StartOptions, queue: str) -> None:
    """What the call names comes first, then the definition, then the parent."""
    assert child(definition, options).queue == queue


def test_a_child_inherits_nothing_else() -> None:
    """Priority and tags are its own; id and parent come from the command."""
    made = child(plain)
    assert (made.id, made.parent_id, made.priority, made.tags) == ("p/k", "p", 0, None)
    assert (made.payload, made.digest, made.seed) == ("[1]", "digest", "seed")


def test_a_workflow_without_a_parent_goes_to_its_definitions_queue() -> None:
    """And has its definition's attempts."""
    made = new_workflow(mails.spec, StartOptions(), "id", "[1]", "d", seed="s")
    assert (made.queue, made.max_attempts, made.parent_id) == ("mails", 3, None)


def test_options_become_columns_in_microseconds() -> None:
    """Durations are rounded, not cut; tags become JSON."""
    options = StartOptions(
        priority=2, partition="x", delay_s=0.0000019, timeout_s=90.5, max_attempts=9, tags=(("a", "1"), ("b", "2"))
    )
    made = new_workflow(plain.spec, options, "id", "[1]", "d", seed="s")
    assert (made.priority, made.partition, made.delay_us, made.timeout_us) == (2, "x", 2, 90_500_000)
    assert made.max_attempts == 9
    assert made.tags is not None
    assert msgspec.json.decode(made.tags) == {"a": "1", "b": "2"}


def test_a_start_at_an_instant_has_no_delay() -> None:
    """`run_at` is passed on, and no timeout is none."""
    made = new_workflow(plain.spec, StartOptions(run_at_us=5), "id", "[1]", "d", seed="s")
    assert (made.run_at, made.delay_us, made.timeout_us) == (5, 0, None)
