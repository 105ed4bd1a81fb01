"""`BlockingEnvironment`: an environment for plain blocking tests. Its loop turns while a call is being made, in the caller's
own thread, and stands still in between: nothing happens behind the test's back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from onward._wrappers import BoundWorkflow, Workflow
from onward.context import Signal
from onward.errors import WrongEventLoop
from onward.handle import AsyncHandle, Handle
from onward.retry import Duration
from onward.testing._arranging import Arranging
from onward.testing._everywhere import CrashReport, Picture, Result, rounds
from onward.testing._faults import PlannedFault

if TYPE_CHECKING:
    from onward.testing._environment import Environment

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class BlockingEnvironment(Arranging):
    """The blocking face of an `Environment`: ``with Environment() as env``, or the fixture ``onward_env`` in a plain test.

    The same calls, one to one; handles are those of the blocking `Client`. The worker runs while a call is being made.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._runner: asyncio.Runner | None = None
        self._doubles = environment._doubles
        self._faults = environment._faults
        self._client_faults = environment._client_faults

    def _call(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        if _loop_is_running():
            raise WrongEventLoop(
                "a blocking environment was called inside a running event loop; use `async with Environment() as env` here"
            )
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(make())

    def close(self) -> None:
        """End the worker and the client; leaving the ``with`` block does it."""
        if self._runner is not None:
            try:
                self._call(self._environment.close)
            finally:
                self._runner.close()
                self._runner = None

    def _handle(self, handle: AsyncHandle[R]) -> Handle[R]:
        return Handle(handle, self._call)

    @property
    def url(self) -> str:
        """The database."""
        return self._environment.url

    @property
    def now(self) -> datetime:
        """The time here, in UTC."""
        return self._environment.now

    @overload
    def start(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    def start(self, workflow: BoundWorkflow[R], /) -> Handle[R]: ...
    def start(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Start a workflow; see `Environment.start`. It runs while you make further calls."""
        return self._handle(self._call(lambda: self._environment.start(workflow, *args, **kwargs)))

    @overload
    def run(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def run(self, workflow: BoundWorkflow[R], /) -> R: ...
    def run(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start a workflow, bring it to its end and return its result; see `Environment.run`."""
        return self._call(lambda: self._environment.run(workflow, *args, **kwargs))

    def handle(self, workflow_id: str, workflow: Workflow[..., R], /) -> Handle[R]:
        """A handle for an id; see `AsyncClient.handle`."""
        return self._handle(self._environment.client.handle(workflow_id, workflow))

    def signal(self, workflow: AsyncHandle[Any] | Handle[Any] | str, signal: Signal[T], value: T, /) -> None:
        """Send a signal; see `Environment.signal`."""
        self._call(lambda: self._environment.signal(workflow, signal, value))

    def settle(self) -> None:
        """Let everything run that can run now; see `Environment.settle`."""
        self._call(self._environment.settle)

    def advance(self, by: Duration) -> None:
        """Let this much time pass; see `Environment.advance`."""
        self._call(lambda: self._environment.advance(by))

    def until(self, fault: PlannedFault, /) -> None:
        """Go on until a planned crash has happened; see `Environment.until`."""
        self._call(lambda: self._environment.until(fault))

    def kill(self) -> None:
        """Let the worker die now; see `Environment.kill`."""
        self._call(self._environment.kill)

    def restart(self, workflows: Iterable[Workflow[..., Any]] = ()) -> None:
        """Stop the worker gracefully and start another; see `Environment.restart`."""
        self._call(lambda: self._environment.restart(workflows))

    @overload
    def crash_everywhere(self, scenario: Workflow[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> CrashReport: ...
    @overload
    def crash_everywhere(
        self, scenario: BoundWorkflow[Any] | Callable[[BlockingEnvironment], Any], /
    ) -> CrashReport: ...
    def crash_everywhere(self, scenario: Any, /, *args: Any, **kwargs: Any) -> CrashReport:
        """Run something undisturbed, then once for each point at which its worker could crash, and compare; see
        `Environment.crash_everywhere`. A scenario is here a plain ``def scenario(env)`` that gets a blocking environment."""
        play = rounds(self._environment)
        another = next(play)
        while True:
            face, result = BlockingEnvironment(another), Result()
            try:
                with result.caught():
                    is_workflow = isinstance(scenario, (Workflow, BoundWorkflow))
                    result.value = face.run(scenario, *args, **kwargs) if is_workflow else scenario(face)
                picture = face._call(lambda: face._picture(result))  # noqa: B023  # called at once
            finally:
                face.close()
            try:
                another = play.send(picture)
            except StopIteration as end:
                report: CrashReport = end.value
                return report

    async def _picture(self, result: Result) -> Picture:
        store = await self._environment._store()
        return await Picture.take(store, result.value, result.error, self.calls())


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
