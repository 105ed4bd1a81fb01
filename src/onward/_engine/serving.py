"""Tasks for the coroutines of `async def` steps: one of its own only for a body that waits for something.

A body that ends without ever waiting needs no task of its own, and making one costs as much as many a body. So a serving
task takes the bodies that are ready one after the other, each in a context of its own; which bodies to try so is learnt
from the last one of the same step. When such a body does wait, the task is that body's from then on (its cancellation, its
timeouts), and another one serves the rest. For a body there is no difference: `asyncio.current_task()`, `asyncio.timeout`
and cancellation work as in any task. Used by bodies.py only.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Hashable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar


class Served(Protocol):
    """What is served."""

    task: asyncio.Future[Any] | None
    """The task that runs it, to cancel it by; None before and after."""


S = TypeVar("S", bound=Served)


class Serving(Generic[S]):
    """Serves on the running loop.

    Args:
        run: makes the coroutine for one item; it must raise nothing.
        context: what each coroutine gets a copy of.
        failed: told of an error that leaves a coroutine all the same: a bug.
    """

    def __init__(
        self,
        run: Callable[[S], Coroutine[Any, Any, None]],
        context: contextvars.Context,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._run = run
        self._context = context
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._ready: deque[tuple[S, Hashable]] = deque()
        self._quick: set[Hashable] = set()
        """The kinds whose last item ended without waiting."""
        self._is_served = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        """The tasks that run now."""
        return tuple(self._tasks)

    def start(self, item: S, kind: Hashable) -> None:
        """Run an item soon, never before this call has returned; `kind` says of which it can be learnt how it will behave."""
        if kind not in self._quick:
            self._make_task(self._serve(deque(((item, kind),))))
            return
        self._ready.append((item, kind))
        if not self._is_served:
            self._serve_on()

    def _serve_on(self) -> None:
        """Another task serves what is ready, if anything is."""
        self._is_served = bool(self._ready)
        if self._is_served:
            self._make_task(self._serve(self._ready))

    def _make_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.Task(coroutine, loop=self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def _serve(self, items: deque[tuple[S, Hashable]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        rest: _Rest | None = None
        try:
            while items and rest is None and not task.cancelling():
                item, kind = items.popleft()
                rest = self._begin(item, kind, task)
        finally:
            if items is self._ready:
                self._serve_on()
        if rest is not None:
            await rest

    def _begin(self, item: S, kind: Hashable, task: asyncio.Task[Any]) -> _Rest | None:
        """Run an item until it ends (None) or waits for something."""
        context = self._context.copy()
        coroutine = self._run(item)
        item.task = task
        try:
            awaited = context.run(coroutine.send, None)
        except StopIteration:
            item.task = None
            self._quick.add(kind)
            return None
        self._quick.discard(kind)
        return _Rest(coroutine, context, awaited)


class _Rest:
    """The rest of a coroutine that has begun, each of its turns in its own context."""

    __slots__ = ("_awaited", "_context", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, None], context: contextvars.Context, awaited: Any) -> None:
        self._coroutine = coroutine
        self._context = context
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        coroutine, run, awaited = self._coroutine, self._context.run, self._awaited
        while True:
            try:
                sent = yield awaited
            except BaseException as error:  # a cancellation, thrown by the task: it is the coroutine's
                turn = partial(coroutine.throw, error)
            else:
                turn = partial(coroutine.send, sent)
            try:
                awaited = run(turn)
            except StopIteration:
                return
