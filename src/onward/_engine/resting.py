"""When a held execution has nothing to do: until when that is, whether it parks, and the one timer that ends a short wait.

A part of a `Runner`. A wait of a few milliseconds is sat out in memory; a longer one parks, so that sleepers cost nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from onward._engine import endings
from onward._engine.inputs import Inputs
from onward._engine.replay.matching import Execution
from onward._engine.steps import Steps
from onward._store.operations import ParkOp, ReleaseOp

if TYPE_CHECKING:
    from onward._engine.runner import Runner

LONGEST_TIMER_S = 3600.0


class Rest:
    """The waits of one execution."""

    __slots__ = ("_runner", "_timer")

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_timed(self) -> bool:
        """Whether the timer is set."""
        return self._timer is not None

    def next_event_at(self, core: Execution, steps: Steps, inputs: Inputs) -> int | None:
        """The next instant at which something happens by itself."""
        times = (steps.next_try_at, inputs.next_event_at(core))
        return min((at for at in times if at is not None), default=None)

    def park(self, core: Execution, steps: Steps, inputs: Inputs, activation_us: int) -> ParkOp | None:
        """How to park; None where the next event is so close that it is awaited here, or where nothing can ever come: then
        the core has ended with `WorkflowStuck`."""
        engine = self._runner.engine
        next_at = self.next_event_at(core, steps, inputs)
        waiting = core.waiting()
        awaits_mail = any(item.kind in ("signal", "child") for item in waiting)
        if next_at is None and not awaits_mail:
            core.stuck("waits for something that no step, timer, signal or child can bring")
            return None
        now = engine.now_us()
        if next_at is not None and next_at - now <= engine.hold_us:
            return None
        states = steps.waiting()
        awaited = sum(item.kind == "child" for item in waiting) or None
        floor = now + engine.wake_spacing * activation_us if awaited else None
        shown = endings.waiting_for(waiting, states)
        return ParkOp(
            self._runner.fence, inputs.seen, next_at, awaits_mail, shown, tuple(states.values()), awaited, floor
        )

    def give_back(self, steps: Steps, inputs: Inputs) -> ParkOp | ReleaseOp:
        """Let another worker, or a later claim, go on at once; steps between two tries keep their count and their time."""
        runner = self._runner
        states = tuple(steps.states())
        if states:
            return ParkOp(runner.fence, inputs.seen, runner.engine.now_us(), False, "[]", states)
        return ReleaseOp(runner.fence)

    def schedule(self, core: Execution, steps: Steps, inputs: Inputs) -> None:
        """Set the timer for the next event."""
        self.cancel()
        next_at = self.next_event_at(core, steps, inputs)
        if next_at is not None:
            engine = self._runner.engine
            delay = max(0.0, (next_at - engine.now_us()) / 1e6)
            self._timer = engine.loop.call_later(min(delay, LONGEST_TIMER_S), self._fired)

    def cancel(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fired(self) -> None:
        self._timer = None
        self._runner.time_passed()
