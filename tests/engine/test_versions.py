"""Code that does not fit the history: put back unspent, taken at once by a worker of another version."""

from __future__ import annotations

import asyncio

import pytest

from onward import Signal, Workflow, current, log, patched, random, step, uuid4, workflow
from onward._store.records import Claimed, ClaimRequest
from tests.engine.support import Lab, engine_of, keys, wait_for

go = Signal("go", int)


@step
async def work(n: int) -> int:
    """A step with an argument."""
    return n


@step
async def other(n: int) -> int:
    """Another one."""
    return n


@workflow(name="flow")
async def original() -> int:
    """What was deployed first."""
    return await work(1) + await go.wait()


@workflow(name="flow")
async def changed_step() -> int:
    """Calls another step before the recorded point."""
    return await other(1) + await go.wait()


@workflow(name="flow")
async def changed_argument() -> int:
    """Calls it with another argument."""
    return await work(2) + await go.wait()


@pytest.mark.parametrize("changed", [changed_step, changed_argument])
async def test_a_divergence_spends_no_attempt_and_the_old_code_may_go_on(
    lab: Lab, changed: Workflow[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    async with lab.client() as client:
        async with lab.working(original, code_version="v1"):
            handle = await client.start(original)
            await lab.parked(handle, on="go")
        await client.signal(handle, go, 41)
        async with lab.working(changed, code_version="v2"):

            async def is_put_back() -> bool:
                info = await lab.info(handle)
                return info.error is not None and info.status == "pending"

            await lab.until(is_put_back)
            info = await lab.info(handle)
            assert info.error is not None
            assert info.error.type == "NonDeterminismError"
            assert "'work'" in info.error.message
            assert "test_versions.py" in info.error.message
            assert info.attempts == 0
        async with lab.working(original, code_version="v1"):
            assert await handle.result(timeout=10) == 42
    assert "does not fit this code" in caplog.text


async def test_code_of_the_same_version_tries_again_with_a_growing_back_off(lab: Lab) -> None:
    async with lab.client() as client:
        async with lab.working(original, code_version="v1"):
            handle = await client.start(original)
            await lab.parked(handle, on="go")
        await client.signal(handle, go, 1)
        async with lab.working(changed_step, code_version="v2"):
            waits = []
            for _ in range(3):

                async def is_put_back() -> bool:
                    info = await lab.info(handle)
                    return info.next_run_at is not None and info.next_run_at > lab.clock.now()

                await lab.until(is_put_back)
                info = await lab.info(handle)
                assert info.next_run_at is not None
                waits.append(round((info.next_run_at - info.updated_at).total_seconds()))
                lab.clock.advance(waits[-1])
    assert waits == [1, 2, 4]


async def test_code_that_diverged_never_gets_the_row_before_its_back_off_ends_while_other_code_runs(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.client() as client:
        async with lab.working(original, code_version="v1"):
            handle = await client.start(original)
            await lab.parked(handle, on="go")
        await client.signal(handle, go, 41)
        async with lab.working(changed_step, code_version="v2") as misfit:
            for number in range(5):  # the fifth back-off is 16 s

                async def is_put_back(number: int = number) -> bool:
                    info = await lab.info(handle)
                    return info.next_run_at is not None and info.next_run_at > lab.clock.now()

                await lab.until(is_put_back)
                if number < 4:
                    lab.clock.advance(2**number)
            looks: list[int] = []
            looked = asyncio.Event()
            store = engine_of(misfit).store
            claim = store.claim

            async def seen(request: ClaimRequest) -> list[Claimed]:
                rows = await claim(request)
                looks.append(len(rows))
                looked.set()
                return rows

            monkeypatch.setattr(store, "claim", seen)
            for other_version in ("v3", "v4"):  # each makes the row due, and cannot take it
                assert await lab.store.adopt_diverged(other_version) >= (other_version == "v3")
                for _ in range(2):  # a look that began before may end first
                    looked.clear()
                    engine_of(misfit).dispatcher.poke()
                    await wait_for(looked)
            async with lab.working(original, code_version="v1"):
                assert await handle.result(timeout=10) == 42
            assert sum(looks) == 0
            assert len(looks) < 100  # or it has looked again and again for what it cannot have


async def test_changes_after_the_recorded_point_are_free(lab: Lab) -> None:
    @workflow(name="flow")
    async def longer() -> int:
        return await work(1) + await go.wait() + await other(100)

    async with lab.client() as client:
        async with lab.working(original, code_version="v1"):
            handle = await client.start(original)
            await lab.parked(handle, on="go")
        await client.signal(handle, go, 1)
        async with lab.working(longer, code_version="v2"):
            assert await handle.result(timeout=10) == 102


async def test_patched_is_true_for_workflows_that_come_there_for_the_first_time_only(lab: Lab) -> None:
    @workflow(name="flow")
    async def mended() -> int:
        first = await other(10) if patched("use other") else await work(1)
        got = await go.wait()
        assert patched("use other") == (first == 10)
        return first + got

    async with lab.client() as client:
        async with lab.working(original, code_version="v1"):
            old = await client.start(original)
            await lab.parked(old, on="go")
        async with lab.working(mended, code_version="v2"):
            new = await client.start(mended)
            await lab.parked(new, on="go")
            for handle in (old, new):
                await client.signal(handle, go, 1)
            assert await old.result(timeout=10) == 2
            assert await new.result(timeout=10) == 11
        assert keys(await new.journal()) == ["patch:use other", "other", "signal:go"]


async def test_random_numbers_and_ids_are_the_same_on_every_replay(lab: Lab) -> None:
    seen: list[tuple[str, float]] = []

    @workflow
    async def flow() -> None:
        seen.append((str(uuid4()), random()))
        await asyncio.sleep(3600)

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle)
        lab.clock.advance(3600)
        await handle.result(timeout=10)
        other_handle = await client.start(flow)
        await lab.parked(other_handle)
        lab.clock.advance(3600)
        await other_handle.result(timeout=10)
    assert len(seen) >= 4
    assert len(set(seen)) == 2


async def test_the_log_of_a_workflow_is_silent_while_it_replays(
    plain_lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    @workflow
    async def flow() -> str:
        log.warning("begins")
        await work(1)
        log.warning("has worked")
        await asyncio.sleep(3600)
        log.warning("has slept")
        return f"{current().attempt}"

    lab = plain_lab
    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle)
        lab.clock.advance(3600)
        assert await handle.result(timeout=10) == "1"
    messages = [record.getMessage() for record in caplog.records if record.name == "onward.workflow"]
    assert messages == ["begins", "has worked", "has slept"]


async def test_a_former_name_of_a_workflow_goes_on_under_its_new_one(lab: Lab) -> None:
    @workflow(name="renamed", also=["flow"])
    async def renamed() -> int:
        return await work(1) + await go.wait()

    async with lab.client() as client:
        async with lab.working(original):
            handle = await client.start(original)
            await lab.parked(handle, on="go")
        await client.signal(handle, go, 1)
        async with lab.working(renamed):
            assert await handle.result(timeout=10) == 2
