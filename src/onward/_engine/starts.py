"""From a definition and its start options to the row of a new workflow; the same for clients and for parents."""

from __future__ import annotations

import secrets
import struct
import time

import msgspec

from onward._engine.replay.commands import StartChild
from onward._engine.specs import StartOptions, WorkflowSpec
from onward._store.records import Claimed, NewWorkflow

TICKS = 4096
"""In a millisecond: the ids of one process count them, so that they sort in the order of their making."""
PATIENCE_TICKS = 1000 * TICKS
"""A clock that has been set back by more than a second is followed."""
_VARIANT = str.maketrans("0123456789abcdef", "89ab" * 4)
"""A random hex digit as the first of an id's fourth group, whose two high bits are 10."""


class _Ticks:
    """The times of new ids: this machine's, each one later than the one before."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def take(self, count: int) -> int:
        """The first of `count` ticks. (Two threads may get the same: ids differ by their random bits.)"""
        millis, rest = divmod(time.time_ns(), 1_000_000)
        first = now = millis * TICKS + rest * TICKS // 1_000_000
        if 0 <= self._last - now < PATIENCE_TICKS:
            first = self._last + 1
        self._last = first + count - 1
        return first


_ticks = _Ticks()


def new_workflow_id() -> str:
    """A UUIDv7 string: ids sort by the time of their making, which keeps the tables' trees compact."""
    return new_workflow_ids(1)[0]


def new_workflow_ids(count: int) -> list[str]:
    """UUIDv7 strings that sort in the order in which they are given: workflows of one batch are run in this order.

    48 bits of milliseconds, 12 of parts of a millisecond, 62 random ones.
    """
    number = _ticks.take(count)
    digits = secrets.token_bytes(8 * count).hex()
    variants = digits[::16].translate(_VARIANT)
    ids: list[str] = []
    while (at := len(ids)) < count:  # a run for each millisecond, since its ids begin alike
        millis, tick = divmod(number + at, TICKS)
        run = range(at, min(count, at + TICKS - tick))
        head = f"{millis >> 16:08x}-{millis & 0xFFFF:04x}-"
        parts = struct.pack(f">{len(run)}H", *range(0x7000 + tick, 0x7000 + tick + len(run))).hex()
        ids += [
            f"{head}{parts[one : one + 4]}-{variant}{digits[place : place + 3]}-{digits[place + 3 : place + 15]}"
            for one, variant, place in zip(
                range(0, len(parts), 4),
                variants[run.start : run.stop],
                range(16 * at + 1, 16 * run.stop, 16),
                strict=True,
            )
        ]
    return ids


def new_seed() -> str:
    """128 random bits as hex: the source of the workflow's `uuid4` and `random`, and the token of its start."""
    return secrets.token_hex(16)


def new_seeds(count: int) -> list[str]:
    """So many of them."""
    text = secrets.token_hex(16 * count)
    return [text[at : at + 32] for at in range(0, 32 * count, 32)]


def new_workflow(
    spec: WorkflowSpec,
    options: StartOptions,
    workflow_id: str,
    payload: str,
    digest: str,
    *,
    seed: str,
    parent: Claimed | None = None,
) -> NewWorkflow:
    """The row to insert. A child that names no queue goes to its parent's."""
    queue = options.queue or spec.queue
    if parent is not None and options.queue is None and spec.queue == "default":
        queue = parent.queue
    return NewWorkflow(
        id=workflow_id,
        type=spec.name,
        payload=payload,
        digest=digest,
        seed=seed,
        queue=queue,
        priority=options.priority,
        partition=options.partition,
        tags=msgspec.json.encode(dict(options.tags)).decode() if options.tags else None,
        max_attempts=options.max_attempts or spec.max_attempts,
        delay_us=round((options.delay_s or 0) * 1e6),
        run_at=options.run_at_us,
        timeout_us=None if options.timeout_s is None else round(options.timeout_s * 1e6),
        parent_id=None if parent is None else parent.id,
    )


def child_workflow(command: StartChild, *, parent: Claimed, seed: str) -> NewWorkflow:
    """The row of a child that a parent's command starts."""
    return new_workflow(
        command.spec, command.options, command.child_id, command.payload, command.digest, seed=seed, parent=parent
    )
