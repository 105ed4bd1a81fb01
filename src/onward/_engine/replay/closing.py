"""How an execution is closed: every task's coroutine and every async generator ends here, and nowhere else.

A suspended coroutine that is merely dropped would run its `finally` blocks whenever the collector finds it: inside another
workflow, in a pool thread, or on the worker's own loop, where a step would run unrecorded. So closing throws `Closing` into
each. Cleanup code that then awaits anything durable suspends for good and gets `Closing` thrown in there, too; nothing that
it calls has an effect. Code that will not end goes to a graveyard, which keeps it from ever running again.
Called by the loop, inside an activation of that loop.
"""

from __future__ import annotations

import atexit
import logging
import sys
import weakref
from asyncio import Task
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onward._engine.replay.private import activate, enter_task, here, leave_task, unlink
from onward._engine.replay.where import is_finished, location

if TYPE_CHECKING:
    from onward._engine.replay.loop import ReplayLoop

logger = logging.getLogger("onward.workflow")

GRAVES = 1000
"""How many coroutines that will not end are kept before the oldest is released."""


class Closing(BaseException):
    """Thrown into workflow code when its execution leaves memory; cleanup code may see it, and must let it pass."""


class Closer:
    """Closes the tasks and async generators of one loop."""

    __slots__ = ("_agens", "_dropped", "_loop", "has_buried")

    def __init__(self, loop: ReplayLoop) -> None:
        self._loop = loop
        self._agens: dict[int, weakref.ref[Any]] = {}
        self._dropped: list[Any] = []
        self.has_buried = False

    def agen_started(self, agen: Any) -> None:
        """Remember an async generator as long as it lives."""
        key, agens = id(agen), self._agens
        agens[key] = weakref.ref(agen, lambda ref: agens.pop(key, None) if agens.get(key) is ref else None)

    def agen_dropped(self, agen: Any) -> None:
        """An async generator that is suspended at a yield has lost its last reference.

        In a drain that happens at the same place on every replay (reference counts; the cyclic collector is off), so its
        cleanup runs as a task. At any other time it is kept and closed with the rest.
        """
        loop = self._loop
        if loop.closing or here.loop is not loop:
            self._dropped.append(agen)
        else:
            loop.create_task(agen.aclose(), name=f"aclose of {agen.__qualname__}")

    def close(self, tasks: Sequence[Task[Any]]) -> None:
        """Close these tasks' coroutines in order of creation, then every async generator."""
        for task in tasks:
            unlink(task)
            enter_task(
                self._loop, task
            )  # cleanup code may use asyncio.timeout() or a TaskGroup, which ask for the task
            try:
                self._end(task.get_coro())
            finally:
                leave_task(self._loop, task)
        while self._agens or self._dropped:
            agens = [*(ref() for ref in self._agens.values()), *self._dropped]
            self._agens.clear()
            self._dropped.clear()
            for agen in agens:
                if agen is not None and not is_finished(agen):
                    self._end_agen(agen)

    def _end(self, coroutine: Any) -> None:
        """Throw `Closing` until the coroutine ends; bury it if it does not."""
        for _ in range(self._loop.limits.refusals):
            try:
                coroutine.throw(Closing())
            except BaseException:  # whatever leaves: it has ended, and its outcome is of no use to anyone
                return
        self._bury(coroutine)

    def _end_agen(self, agen: Any) -> None:
        if getattr(agen, "ag_running", False):
            return self._bury(agen)
        closing = agen.aclose()
        try:
            closing.send(None)
        except BaseException:  # as above
            return None
        return self._end(closing)

    def _bury(self, coroutine: Any) -> None:
        self.has_buried = True
        owner = self._loop.owner
        logger.warning(
            "workflow %s: cleanup code at %s never ends and was abandoned; let BaseException pass in it",
            owner.workflow_id if owner is not None else "", location(coroutine) or "an unknown place",
        )  # fmt: skip
        if not _graveyard:
            atexit.unregister(_empty_graveyard)
            atexit.register(_empty_graveyard)
        _graveyard.append((self._loop, coroutine))
        if len(_graveyard) > GRAVES:
            _release()


_graveyard: deque[tuple[ReplayLoop, Any]] = deque()


def _release() -> None:
    """Drop the oldest where its last words are refused: with its own closed loop as the running one.

    Python's complaint that it ignores its end would tell people nothing that the warning at its burial has not said.
    """
    loop, coroutine = _graveyard.popleft()
    held = [coroutine]
    del coroutine
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        if here.loop is loop:
            held.clear()
        else:
            activate(loop, held.clear)
    finally:
        sys.unraisablehook = hook


def _empty_graveyard() -> None:
    while _graveyard:
        _release()
