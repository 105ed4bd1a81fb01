"""`progress()` in the bodies of steps: partial results that people may follow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from onward import NotInWorkflow, Retry, progress, step, workflow
from onward._engine import showing
from onward._store.operations import JournalOp, Op
from tests.engine.support import Lab, engine_of


async def test_a_body_shows_its_partial_results_while_it_runs(lab: Lab) -> None:
    go = asyncio.Event()

    @step
    async def answer() -> str:
        progress("It")
        progress("It is")
        await go.wait()
        return "It is done"

    @workflow
    async def flow() -> str:
        return await answer()

    async with lab.running(flow) as client:
        handle = await client.start(flow)

        async def newest_is_shown() -> bool:
            return bool((await lab.info(handle)).progress == "It is")

        await lab.until(newest_is_shown)
        assert (await lab.info(handle)).status == "running"
        go.set()
        assert await handle.result(timeout=10) == "It is done"


async def test_a_body_in_a_thread_shows_as_well(lab: Lab) -> None:
    go = threading.Event()

    @step
    def answer() -> None:
        progress({"part": 1})
        go.wait(20)

    @workflow
    async def flow() -> None:
        await answer()

    async with lab.running(flow) as client:
        handle = await client.start(flow)

        async def is_shown() -> bool:
            return bool((await lab.info(handle)).progress == {"part": 1})

        try:
            await lab.until(is_shown)
        finally:
            go.set()
        await handle.result(timeout=10)


async def test_the_last_value_of_a_body_is_committed_with_its_entry(lab: Lab) -> None:
    @step
    async def answer() -> None:
        for part in range(1000):
            progress(part)

    @workflow
    async def flow() -> None:
        await answer()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await handle.result(timeout=10)
        assert (await handle.info()).progress == 999


async def test_a_body_that_shows_much_writes_little(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value is on its way at a time, and the next one waits: here for ever."""
    monkeypatch.setattr(showing, "SPACING_S", 3600.0)
    written: list[Op] = []
    go = asyncio.Event()

    @step
    async def answer() -> None:
        for part in range(200):
            progress(part)
            await asyncio.sleep(0)
        await go.wait()

    @workflow
    async def flow() -> None:
        await answer()

    async with lab.working(flow) as worker, lab.client() as client:
        store = engine_of(worker).store
        write = store.write

        async def watched(batch: Sequence[Op], *, retry: bool = False) -> object:
            written.extend(batch)
            return await write(batch, retry=retry)

        monkeypatch.setattr(store, "write", watched)
        handle = await client.start(flow)

        async def is_shown() -> bool:
            return (await lab.info(handle)).progress is not None

        await lab.until(is_shown)
        go.set()
        await handle.result(timeout=10)
        assert (await handle.info()).progress == 199
    assert len([op for op in written if isinstance(op, JournalOp) and op.progress is not None]) == 2


async def test_a_value_of_workflow_code_is_never_replaced_by_an_older_one_of_a_body(lab: Lab) -> None:
    @step
    async def answer() -> None:
        for part in range(10):
            progress(part)
            await asyncio.sleep(0)

    @workflow
    async def flow() -> None:
        await answer()
        progress("all parts")
        await asyncio.sleep(0.3)

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await handle.result(timeout=10)
        assert (await handle.info()).progress == "all parts"


async def test_a_try_that_is_over_shows_nothing_any_more(lab: Lab) -> None:
    late = threading.Event()
    said = threading.Event()

    @step(timeout=0.05)
    def slow() -> None:
        late.wait(20)
        progress("too late")
        said.set()

    @step
    async def mend() -> None:
        progress("mended")

    @workflow
    async def flow() -> None:
        try:
            await slow()
        except Exception:
            await mend()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        try:
            await handle.result(timeout=10)
        finally:
            late.set()
        assert await asyncio.to_thread(said.wait, 20)
        assert (await handle.info()).progress == "mended"


async def test_each_try_shows_anew(lab: Lab) -> None:
    tries: list[int] = []

    @step(retry=Retry(tries=2, delay=0))
    async def flaky() -> None:
        tries.append(1)
        progress(f"try {len(tries)}")
        if len(tries) == 1:
            raise OSError

    @workflow
    async def flow() -> None:
        await flaky()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await handle.result(timeout=10)
        assert (await handle.info()).progress == "try 2"


def test_outside_of_workflows_there_is_nothing_to_show() -> None:
    with pytest.raises(NotInWorkflow, match="progress"):
        progress(1)
