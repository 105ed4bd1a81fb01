"""A real event loop whose time leaps to the next timer whenever nothing else can happen: no test waits, none measures.

A loop on which nothing can ever happen any more raises instead of hanging.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _LeapingSelector(selectors.DefaultSelector):
    """Never blocks: tells the loop how long it would have."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise AssertionError("the test waits for something that can never happen")
        if not events and timeout is not None:
            self.now += max(0.0, timeout)
        return events


class LeapingLoop(asyncio.SelectorEventLoop):
    """`loop.time()` begins at 0."""

    def __init__(self) -> None:
        self._leaping = _LeapingSelector()
        super().__init__(self._leaping)

    def time(self) -> float:
        """Seconds that would have passed."""
        return self._leaping.now


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test on such a loop; it may leave no task behind."""
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:

        async def checked() -> None:
            await test
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks left behind: {left}"

        runner.run(checked())


async def turns(count: int = 10) -> None:
    """Let the loop turn without its time moving."""
    for _ in range(count):
        await asyncio.sleep(0)
