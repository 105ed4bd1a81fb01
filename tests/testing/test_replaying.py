"""An exported history is replayed with the code of today: what fits says where it stands, what does not names the change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

import onward
from onward import CodecError, ConfigurationError, NonDeterminismError, PlainCodec, workflow
from onward.testing import Environment, replay
from tests.testing import flows

Make = Callable[..., Environment]


async def sleeping(env: Environment) -> str:
    """The history of an onboarding in the middle of its sleep."""
    handle = await env.start(flows.onboarding.using(tags={"plan": "free"}), "ada")
    await env.settle()
    return await handle.export()


async def test_a_history_in_flight_fits_its_own_code(environment: Make) -> None:
    async with environment() as env:
        text = await sleeping(env)
    replayed = replay(flows.onboarding, text)
    assert (replayed.state, replayed.waiting) == ("waiting", ("sleep",))
    assert (replayed.id, replayed.type) == ("onboarding-1", "onboarding")


async def test_a_history_that_is_over_gives_its_result_and_does_not_touch_the_world(environment: Make) -> None:
    async with environment() as env:
        handle = await env.start(flows.parent, 2)
        result = await handle.result()
        text, calls = await handle.export(), len(env.calls())
    replayed = replay([flows.onboarding, flows.parent], text)
    assert (replayed.state, replayed.result) == ("completed", result)
    assert len(env.calls()) == calls


async def test_random_numbers_times_and_signals_are_those_of_the_history(environment: Make) -> None:
    @workflow
    async def flow() -> list[object]:
        answer = await flows.approved.wait()
        sent = await flows.send(str(onward.uuid4()), str(onward.now()))
        return [answer, sent, onward.random(), dict(onward.current().tags)]

    async with environment() as env:
        handle = await env.start(flow.using(tags={"a": "b"}))
        await env.signal(handle, flows.approved, True)
        result = await handle.result()
        text = await handle.export()
    assert replay(flow, text).result == result


async def test_struck_out_entries_are_exported_and_not_replayed(environment: Make) -> None:
    """A step's error that is recorded first and escapes later is struck out: the step is tried again."""

    @workflow(backoff=onward.Retry(delay=1, jitter=0))
    async def flow() -> str:
        first = asyncio.create_task(flows.charge.using(key="late")(1))
        await flows.send("ada")
        return await first

    async with environment() as env:
        env.stub(flows.charge, side_effect=[onward.Fail("no"), "done"])
        env.stub(flows.send, returns="sent", takes=1)
        handle = await env.start(flow)
        with pytest.raises(onward.WorkflowFailed):
            await handle.result()
        assert await handle.retry()
        assert await handle.result() == "done"
        text = await handle.export()
    assert any(entry.get("struck") for entry in json.loads(text)["entries"])
    assert replay(flow, text).result == "done"


async def test_a_change_before_the_recorded_point_is_named(environment: Make) -> None:
    async with environment() as env:
        text = await sleeping(env)

    @workflow(name="onboarding")
    async def charged(address: str) -> list[str]:
        return [await flows.charge(1)]

    with pytest.raises(
        NonDeterminismError, match=r"the history has step 'send' .*but the code did not call it; it waits for step"
    ):
        replay(charged, text)

    @workflow(name="onboarding")
    async def addressed(address: str) -> list[str]:
        return [await flows.send(address.upper())]

    with pytest.raises(NonDeterminismError, match=r'the code called step .send. with .*"ADA"') as error:
        replay(addressed, text)
    assert (error.value.key, error.value.seq) == ("send", 1)

    @workflow(name="onboarding")
    async def ended(address: str) -> list[str]:
        return []

    with pytest.raises(NonDeterminismError, match=r"the code ended \(returned\) before it"):
        replay(ended, text)


async def test_a_change_after_the_recorded_point_or_behind_a_mark_fits(environment: Make) -> None:
    async with environment() as env:
        text = await sleeping(env)

    @workflow(name="welcome", also=["onboarding"])
    async def changed(address: str, greeting: str = "hello") -> str:
        if onward.patched("charge-first"):
            await flows.charge(1)
        await flows.send(address)
        await onward.sleep(timedelta(days=5))
        return await flows.send(greeting)

    assert replay(changed, text).waiting == ("sleep",)


async def test_arguments_that_fit_no_more_are_found_in_flight(environment: Make) -> None:
    async with environment() as env:
        handle = await env.start(flows.approval, 3)
        await env.settle()
        text = await handle.export()
        await handle.result()
        over = await handle.export()

    @workflow(name="approval")
    async def stricter(days: list[str]) -> str:
        return await flows.send("x")

    with pytest.raises(CodecError, match="argument 'days' of workflow 'approval'"):
        replay(stricter, text)
    with pytest.raises(NonDeterminismError):
        replay(stricter, over)


async def test_an_error_that_leaves_the_function_is_told(environment: Make) -> None:
    async with environment() as env:
        text = await sleeping(env)

    @workflow(name="onboarding")
    async def raising(address: str) -> None:
        await flows.send(address)
        raise LookupError("here")

    replayed = replay(raising, text)
    assert replayed.state == "raised"
    assert isinstance(replayed.error, LookupError)


async def test_histories_are_files_of_json_that_people_can_read(environment: Make, tmp_path: Path) -> None:
    path = tmp_path / "onboarding.json"
    async with environment() as env:
        path.write_text(await sleeping(env))
    document = json.loads(path.read_text())
    assert document["onward_history"] == 1
    assert document["arguments"] == {"address": "ada"}
    assert document["tags"] == {"plan": "free"}
    assert document["entries"][0]["result"] == "welcome to ada"
    assert replay(flows.onboarding, path).state == "waiting"


async def test_payloads_are_exported_as_the_codec_reads_them(environment: Make) -> None:
    class Hidden(PlainCodec):
        def encode(self, text: str) -> str:
            return f'"{text.encode().hex()}"'

        def decode(self, text: str) -> str:
            return bytes.fromhex(text.strip('"')).decode()

    async with environment(codec=Hidden()) as env:
        text = await sleeping(env)
        assert replay(flows.onboarding, text).state == "waiting"
        if env.url.startswith("sqlite"):
            async with onward.AsyncClient(env.url, codec=_Deaf()) as other:
                with pytest.raises(CodecError):
                    await other.handle("onboarding-1").export()


class _Deaf(PlainCodec):
    def decode(self, text: str) -> str:
        raise ValueError("the key is another one")


async def test_a_workflow_that_has_not_run_is_exported_as_well(environment: Make) -> None:
    async with environment() as env:
        handle = await env.start(flows.onboarding.using(delay=60), "ada")
        text = await handle.export()
    assert replay(flows.onboarding, text).waiting == ("send",)


def test_the_blocking_handle_exports_the_same() -> None:
    with Environment() as env:
        handle = env.start(flows.purchase, 5)
        handle.result()
        assert replay(flows.purchase, handle.export()).result == "charged 5; welcome to shop"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "the text is no exported history"),
        ("nothing", "make one with `onward export ID`"),
        (
            '{"onward_history": 9, "id": "a", "type": "b", "status": "failed", "seed": "", "arguments": [], "started_at": 0}',
            "upgrade",
        ),
    ],
)
def test_what_is_no_history_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        replay(flows.purchase, text)


async def test_the_history_of_another_workflow_is_refused(environment: Make) -> None:
    async with environment() as env:
        text = await sleeping(env)
    with pytest.raises(ConfigurationError, match=r"history of a 'onboarding', and this is 'purchase', 'approval'"):
        replay([flows.purchase, flows.approval], text)
    with pytest.raises(ConfigurationError, match="functions decorated with @workflow"):
        replay(flows.send, text)  # type: ignore[arg-type]
