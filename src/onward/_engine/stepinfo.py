"""What a step's body can learn of its own try: the value behind `onward.current_step()`.

The try stands in the context that its body runs in, on whatever thread; a `StepInfo` is made when somebody asks. In the
same context stands what a worker's lifespan wants done around each `def` body (`bodies_within`, for integrations).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol


class Stage(Protocol):
    """Where a try shows what it does."""

    def show(self, key: str, text: str) -> None:
        """Show this JSON as the progress of the workflow whose step has this key."""
        ...


class StepInfo:
    """The try of a step that is running.

    Attributes:
        workflow_id: the workflow that called the step.
        key: the step's key in the journal, for instance ``charge#2``.
        idempotency_key: the same on every try and attempt, and of no other call: give it to what must not act twice.
        try_number: 1 at first.
        details: what `heartbeat` was last given.
    """

    __slots__ = (
        "_is_cancelled", "_stage", "_waiters", "details", "idempotency_key", "key", "try_number", "workflow_id",
    )  # fmt: skip

    def __init__(
        self, workflow_id: str, key: str, idempotency_key: str, try_number: int, stage: Stage | None = None
    ) -> None:
        self.workflow_id = workflow_id
        self.key = key
        self.idempotency_key = idempotency_key
        self.try_number = try_number
        self.details: Any = None
        self._stage = stage
        self._is_cancelled = False
        self._waiters: list[threading.Event] = []

    def show(self, text: str) -> None:
        """Show this JSON as the workflow's progress. Callable from the body's thread."""
        if self._stage is not None:
            self._stage.show(self.key, text)

    def heartbeat(self, details: Any = None) -> None:
        """Say that the body is alive, and how far it is. Callable from the body's thread."""
        self.details = details

    @property
    def cancelled(self) -> bool:
        """Whether the result is not wanted any more; a long body looks at this and stops."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Set `cancelled` (the runner does), then wake whoever has begun to wait."""
        self._is_cancelled = True
        for waiter in tuple(self._waiters):
            waiter.set()

    def wait_cancelled(self, timeout_s: float | None = None) -> bool:
        """Block a body's thread until it is cancelled or the time is over; whether it is cancelled."""
        waiter = threading.Event()
        self._waiters.append(waiter)
        if not self._is_cancelled:  # looked at after the waiter can be found: `cancel` sees one, or we see the other
            waiter.wait(timeout_s)
        self._waiters.remove(waiter)
        return self._is_cancelled

    def __repr__(self) -> str:
        return f"<StepInfo {self.workflow_id!r} {self.key!r} try {self.try_number}>"


class Try(Protocol):
    """One try of a step; most are over before anybody asks for its `info`."""

    @property
    def info(self) -> StepInfo:
        """What its body can learn of it; the same object each time."""
        ...


_current: ContextVar[Try | None] = ContextVar("onward_try", default=None)
entered: Callable[[Try], object] = _current.set
"""Make this the running try of the present context (each try has a context of its own)."""


def current_step_info() -> StepInfo | None:
    """The try that this code belongs to, if it does."""
    running = _current.get()
    return None if running is None else running.info


Surrounding = Callable[[], AbstractContextManager[object]]

_surrounding: ContextVar[Surrounding | None] = ContextVar("onward_surrounding", default=None)


@contextmanager
def bodies_within(surrounding: Surrounding) -> Iterator[None]:
    """Within this, in a worker's lifespan: every `def` body of that worker runs inside `surrounding()`, in the body's own
    thread. An error of its own counts as one of the body. One inside another takes its place."""
    token = _surrounding.set(surrounding)
    try:
        yield
    finally:
        _surrounding.reset(token)


def surrounding_of_bodies() -> Surrounding | None:
    """What the lifespan wants around this body, if anything."""
    return _surrounding.get()
