"""The pytest plugin: one fixture, `onward_env`. Loaded by pytest in every project where Onward is installed, so that it imports
nothing of Onward until a test asks for the fixture.

In an `async def` test the fixture is an `Environment`, entered and left in the test's own event loop, whichever plugin runs
it (pytest-asyncio, anyio, or one of your own). In a plain test it is a `BlockingEnvironment`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onward.testing import BlockingEnvironment, Environment

FIXTURE = "onward_env"
_FAILED = pytest.StashKey[bool]()


@pytest.fixture
def onward_env(request: pytest.FixtureRequest) -> Iterator[Environment | BlockingEnvironment]:
    """An empty in-memory database with a worker, in a time that makes leaps: see `onward.testing.Environment`.

    In an `async def` test await its calls; in a plain test they block. What was planned to crash, and did not, fails the test.
    """
    from onward.testing import Environment

    environment = Environment()
    if inspect.iscoroutinefunction(request.function):
        yield environment  # entered and left by the hook below
        return
    with environment as blocking:
        yield blocking
        if request.node.stash.get(_FAILED, False):
            environment._forget_plans()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Let an async test enter and leave its environment in its own loop."""
    environment = getattr(item, "funcargs", {}).get(FIXTURE)
    test = getattr(item, "obj", None)
    if environment is None:
        return (yield)
    if not inspect.iscoroutinefunction(test):
        try:
            return (yield)
        except BaseException:
            item.stash[_FAILED] = True
            raise

    @functools.wraps(test)
    async def within(*args: Any, **kwargs: Any) -> Any:
        async with environment:
            return await test(*args, **kwargs)

    setattr(item, "obj", within)  # noqa: B010  # not every item has one
    try:
        return (yield)
    finally:
        setattr(item, "obj", test)  # noqa: B010
