"""The client of an environment: an `AsyncClient` that waits for results by bringing them about.

Every handle it gives moves the environment's time while somebody waits for its result. What it starts gets readable ids and
is made known to the environment. Its own death can be planned, too: then the call raises `Crashed`, as its process would be
gone, and the next call goes over a new connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from onward._engine.connection import Connection
from onward._engine.replay.calls import current_execution
from onward._requests import bound_workflows
from onward._store.records import Entry, WorkflowRow
from onward.client import AsyncClient
from onward.codec import Codec
from onward.definitions import BoundWorkflow
from onward.handle import AsyncHandle
from onward.testing._clock import LeapingClock
from onward.testing._faults import Crashed, Faults, Passing
from onward.testing._stores import Seeds, mortal

if TYPE_CHECKING:
    from onward.testing._environment import Environment

R = TypeVar("R")


class EnvironmentConnection(Connection):
    """A connection whose waiting brings the environment on, and which a test can cut."""

    def __init__(
        self, environment: Environment, url: str, clock: LeapingClock, codec: Codec | None, faults: Faults, seeds: Seeds
    ) -> None:
        self._environment = environment
        self._faults = faults
        self.is_dead = False
        super().__init__(
            url, codec=codec, clock=clock, probe=self.hit, wrap_store=lambda store: mortal(store, self, seeds)
        )

    async def outcome(self, workflow_id: str, timeout_s: float | None) -> WorkflowRow | None:
        """The final row; None once `timeout_s` of the environment's time have passed."""
        return await self._environment._outcome(workflow_id, timeout_s)

    def check(self) -> None:
        """Raise `Crashed` if it is dead."""
        if self.is_dead:
            raise Crashed("the client's death")

    def hit(self, point: str) -> None:
        """Pass a point, from any thread."""
        self.check()
        if self._faults.passed(Passing(point)) is not None:
            self.is_dead = True
            raise Crashed(point)

    def recorded(self, workflow_id: str, entry: Entry) -> None:
        """A client records nothing."""

    async def bury(self) -> None:
        """Let go of a dead connection."""
        self.committer.abandon()
        await self.committer.bury()
        await self._watcher.close()
        await self.store.close()


class EnvironmentClient(AsyncClient):
    """See the module's docstring; made by `Environment`."""

    def __init__(
        self, environment: Environment, url: str, clock: LeapingClock, codec: Codec | None, faults: Faults, seeds: Seeds
    ) -> None:
        super().__init__(url, codec=codec, _clock=clock)
        self._environment = environment
        self._make: Callable[[], EnvironmentConnection] = lambda: EnvironmentConnection(
            environment, self.url, clock, codec, faults, seeds
        )
        self._started: dict[str, int] = {}

    async def _connection(self) -> Connection:
        connection = self._open
        if isinstance(connection, EnvironmentConnection) and connection.is_dead:
            self._open = None
            await connection.bury()
        if self._open is None and not self._is_closed and current_execution() is None:
            self._open = self._make()
        return await super()._connection()

    async def _start(self, workflows: Iterable[BoundWorkflow[R]]) -> list[AsyncHandle[R]]:
        bounds = [await self._named(bound) for bound in bound_workflows(workflows)[0]]
        await self._environment._learn_from(bounds)
        return await super()._start(bounds)

    async def _named(self, bound: BoundWorkflow[R]) -> BoundWorkflow[R]:
        """With an id that is easy to read, and the same in each run: `onboarding-1`."""
        if bound.options.id is not None:
            return bound
        store = (await self._connection()).store
        while True:
            number = self._started[bound.spec.name] = self._started.get(bound.spec.name, 0) + 1
            workflow_id = f"{bound.spec.name.replace('/', '-')}-{number}"
            if await store.get(workflow_id) is None:
                options = msgspec.structs.replace(bound.options, id=workflow_id)
                return BoundWorkflow(bound.spec, options, bound.args, bound.kwargs)

    async def run(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start a workflow and bring it to its end in the environment."""
        handle: AsyncHandle[Any] = await self.start(workflow, *args, **kwargs)
        return await handle.result()
