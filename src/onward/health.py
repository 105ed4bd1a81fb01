"""How a running worker is: what `Worker.health` says, for the probes of whoever runs the process.

Reads attributes only, so that it can be asked from any thread, and of a worker whose event loop is stuck.
"""

from __future__ import annotations

from dataclasses import dataclass

from onward._engine.engine import Engine

LONGEST_SILENCE_S = 30.0
"""A lease thread that has not begun a beat for as long (or for two leases, where that is longer) hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHealth:
    """A worker at one moment.

    Attributes:
        is_live: its event loop turns and its lease thread beats. False means that only a restart can help. A database that
            cannot be reached, and a worker that is starting or stopping, leave it live.
        is_ready: it takes work: the lease holds, the database answered last, and it is not stopping.
        problems: why it is not live or not ready, in words.
        worker_id: as in the table of workers; None before the start.
        name: the worker's name.
        slots: how many executions it may hold.
        used: how many it holds.
    """

    is_live: bool
    is_ready: bool
    problems: tuple[str, ...]
    worker_id: str | None
    name: str
    slots: int
    used: int


def health_of(engine: Engine | None, *, name: str, slots: int, lease_s: float, is_stopping: bool) -> WorkerHealth:
    """The health of the worker that runs this engine; None before it has one."""
    if engine is None or not engine.worker_id:
        why = "stopping" if is_stopping else "starting"
        return WorkerHealth(
            is_live=True, is_ready=False, problems=(why,), worker_id=None, name=name, slots=slots, used=0
        )
    lease = engine.lease
    stuck_s, silent_s = lease.stuck_s, lease.silent_s
    deadly = []
    if stuck_s >= lease_s:
        deadly.append(f"the event loop has not turned for {stuck_s:.0f} s")
    if silent_s >= max(LONGEST_SILENCE_S, 2 * lease_s):
        deadly.append(f"the lease thread has been silent for {silent_s:.0f} s")
    hindering = []
    if is_stopping or engine.is_stopping:
        hindering.append("stopping")
    elif not lease.holds:
        hindering.append("the lease is not held")
    if lease.is_failing:
        hindering.append("the database cannot be used now")
    return WorkerHealth(
        is_live=not deadly,
        is_ready=not deadly and not hindering,
        problems=(*deadly, *hindering),
        worker_id=engine.worker_id,
        name=name,
        slots=slots,
        used=engine.dispatcher.held_count,
    )
