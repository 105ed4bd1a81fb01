"""What a worker's lifespan puts around `def` bodies (`_engine/stepinfo.py: bodies_within`, for integrations)."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from onward import StepFailed, step, workflow
from onward._engine.stepinfo import bodies_within, surrounding_of_bodies
from tests.engine.support import Lab

seen: list[tuple[str, str]] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


def note(what: str) -> None:
    seen.append((what, threading.current_thread().name))


@contextmanager
def noting() -> Iterator[None]:
    note("before")
    try:
        yield
    finally:
        note("after")


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    with bodies_within(noting):
        yield


@step
def in_a_thread() -> None:
    note("body")


@step
async def on_the_loop() -> None:
    note("async body")


@step
def failing() -> None:
    raise ValueError("the body's own")


@workflow
async def both() -> None:
    await in_a_thread()
    await on_the_loop()


async def test_it_surrounds_each_def_body_in_its_own_thread_and_no_other(plain_lab: Lab) -> None:
    """An `async def` body shares its thread with everything else, so there is nothing to surround."""
    async with plain_lab.client() as client:
        handle = await client.start(both)
        async with plain_lab.working(both, lifespan=lifespan):
            await handle.result(timeout=60)
    assert [what for what, _ in seen] == ["before", "body", "after", "async body"]
    threads = {thread for what, thread in seen if what != "async body"}
    assert len(threads) == 1
    assert threads.pop().startswith("onward-step")
    assert surrounding_of_bodies() is None


async def test_the_error_of_a_body_passes_through(plain_lab: Lab) -> None:
    """And what surrounds it has ended before the step is tried again."""

    @workflow
    async def catches() -> str:
        try:
            await failing.using(key="only")()
        except StepFailed as error:
            return str(error)
        return ""

    async with plain_lab.client() as client:
        handle = await client.start(catches)
        async with plain_lab.working(catches, lifespan=lifespan):
            assert "the body's own" in await handle.result(timeout=60)
    assert [what for what, _ in seen] == ["before", "after"]


async def test_an_error_of_its_own_is_one_of_the_step(plain_lab: Lab) -> None:
    """Nobody else can handle it, and it must not stop the worker."""

    @contextmanager
    def broken() -> Iterator[None]:
        raise OSError("no connection")
        yield

    @asynccontextmanager
    async def with_broken() -> AsyncIterator[None]:
        with bodies_within(broken):
            yield

    @workflow
    async def catches() -> str:
        try:
            await in_a_thread()
        except StepFailed as error:
            return str(error)
        return ""

    async with plain_lab.client() as client:
        handle = await client.start(catches)
        async with plain_lab.working(catches, lifespan=with_broken):
            assert "no connection" in await handle.result(timeout=60)
    assert seen == []
