"""Stubs stand in for bodies of steps and for child workflows; every call of a step can be looked at."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onward
from onward import CodecError, ConfigurationError, WorkflowFailed, step, workflow
from onward.testing import Environment
from tests.testing import flows

Make = Callable[..., Environment]


async def test_a_stub_answers_in_place_of_the_body_and_keeps_its_calls(environment: Make) -> None:
    async with environment() as env:
        stub = env.stub(flows.send, returns="sent")
        assert await env.run(flows.onboarding, "ada") == ["sent", "sent"]
        assert [call.arguments for call in stub.calls] == [
            {"address": "ada"}, {"address": "ada", "template": "follow-up"},
        ]  # fmt: skip
        last = stub.calls[-1]
        assert (last.step, last.key, last.workflow_id) == ("send", "send#2", "onboarding-1")
        assert (last.idempotency_key, last.try_number) == ("onboarding-1/send#2", 1)
        assert env.calls(flows.send) == env.calls() == stub.calls


async def test_calls_of_real_bodies_are_kept_too(environment: Make) -> None:
    async with environment() as env:
        await env.run(flows.purchase, 5)
        assert [(call.key, call.arguments) for call in env.calls()] == [
            ("charge", {"amount": 5}), ("send", {"address": "shop"}),
        ]  # fmt: skip


async def test_a_stub_raises_once_or_always(environment: Make) -> None:
    async with environment() as env:
        with env.stub(flows.charge, raises=flows.Declined("no money")) as stub:
            assert await env.run(flows.purchase, 5) == "declined: no money"
            assert [call.try_number for call in stub.calls] == [1, 2, 3]
        with env.stub(flows.charge, raises=flows.Declined):
            assert await env.run(flows.purchase, 5) == "declined: "
        env.stub(flows.charge, side_effect=[flows.Declined(), "on account"])
        assert await env.run(flows.purchase, 5) == "on account; welcome to shop"


async def test_a_side_effect_is_called_with_the_steps_arguments_and_may_be_async(environment: Make) -> None:
    async def dear(amount: int) -> str:
        await asyncio.sleep(0)
        return f"dear: {amount}"

    async with environment() as env:
        with env.stub(flows.charge, side_effect=lambda amount: f"cheap: {amount}"):
            assert (await env.run(flows.purchase, 5)).startswith("cheap: 5")
        with env.stub(flows.charge, side_effect=dear):
            assert (await env.run(flows.purchase, 6)).startswith("dear: 6")
        assert (await env.run(flows.purchase, 7)).startswith("charged 7")


async def test_current_step_works_in_a_side_effect(environment: Make) -> None:
    async with environment() as env:
        env.stub(flows.charge, side_effect=lambda amount: onward.current_step().idempotency_key)
        assert (await env.run(flows.purchase, 5)).startswith("purchase-1/charge;")


async def test_the_newest_stub_counts_and_what_it_covered_comes_back(environment: Make) -> None:
    async with environment() as env:
        env.stub(flows.charge, returns="old")
        with env.stub(flows.charge, returns="new"):
            assert (await env.run(flows.purchase, 1)).startswith("new")
        assert (await env.run(flows.purchase, 1)).startswith("old")


async def test_a_result_that_the_step_could_not_return_is_refused_when_the_stub_is_made(environment: Make) -> None:
    async with environment() as env:
        with pytest.raises(CodecError, match="result of step 'charge'"):
            env.stub(flows.charge, returns=5)
        with pytest.raises(CodecError, match="result of step 'charge'"):
            env.stub(flows.charge, side_effect=["fine", 5])
        with pytest.raises(WorkflowFailed, match="result of step 'charge'"):
            env.stub(flows.charge, side_effect=lambda amount: 5)
            await env.run(flows.purchase, 5)


async def test_results_come_back_as_the_journal_gives_them(environment: Make) -> None:
    found: list[object] = []

    @step
    async def listed() -> list[int]:
        return []

    @workflow
    async def flow() -> None:
        found.append(await listed())

    mine = [1, 2]
    async with environment() as env:
        env.stub(listed, returns=mine)
        await env.run(flow)
    assert found[0] == mine
    assert found[0] is not mine


async def test_a_stub_without_answers_left_says_so(environment: Make) -> None:
    async with environment() as env:
        env.stub(flows.send, side_effect=["one"])
        with pytest.raises(WorkflowFailed, match="the stub of 'send' has no answer left: it was given 1"):
            await env.run(flows.onboarding.using(max_attempts=1), "ada")


async def test_functions_given_to_call_are_stubbed_as_themselves(environment: Make) -> None:
    def fetch(url: str) -> str:
        raise AssertionError("the network")

    @workflow
    async def flow() -> str:
        return await onward.call(fetch, "http://example.com")

    async with environment() as env:
        stub = env.stub(fetch, returns="page")
        assert await env.run(flow) == "page"
        assert stub.calls[0].arguments == {"url": "http://example.com"}


async def test_child_workflows_are_stubbed_too(environment: Make) -> None:
    async with environment() as env:
        stub = env.stub(flows.purchase, side_effect=lambda amount: f"bought {amount}")
        assert await env.run(flows.parent, 2) == ["bought 0", "bought 1"]
        assert stub.runs == [{"amount": 0}, {"amount": 1}]
        assert env.calls() == []
        with env.stub(flows.purchase, raises=ValueError("sold out")), pytest.raises(WorkflowFailed, match="sold out"):
            await env.run(flows.parent.using(max_attempts=1), 1)


async def test_a_stub_of_another_step_of_the_same_name_is_told_apart(environment: Make) -> None:
    """What is stubbed by mistake must not run for real and send a mail."""

    @step(name="send")
    def other() -> str:
        return ""

    async with environment() as env:
        env.stub(other, returns="")
        with pytest.raises(
            WorkflowFailed, match=r"step 'send' of .*flows.py:\d+ has no stub; there is one for another step"
        ):
            await env.run(flows.onboarding, "ada")
        assert env.calls(flows.send) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"returns": "a", "raises": ValueError}, "one of returns=, raises= and side_effect="),
        ({"raises": "no"}, "takes an exception or its class, not 'no'"),
        ({"side_effect": "abc"}, "takes a function, or several answers"),
        ({"side_effect": 5}, "takes a function, or several answers"),
        ({"side_effect": (value for value in ["a"])}, "make a list of the generator"),
        ({"returns": "a", "takes": -1}, "takes must be zero or more"),
    ],
)
async def test_wrong_options_of_a_stub_are_refused(options: dict[str, Any], says: str) -> None:
    async with Environment() as env:
        with pytest.raises(ConfigurationError, match=says):
            env.stub(flows.charge, **options)


@pytest.mark.parametrize("target", ["charge", 5, ValueError])
async def test_only_steps_workflows_and_functions_are_stubbed(target: Any) -> None:
    async with Environment() as env:
        with pytest.raises(ConfigurationError, match="takes a step, a workflow, or a function"):
            env.stub(target, returns="x")


@step(transactional=True)
def book(connection: sqlite3.Connection, amount: int) -> int:
    connection.execute("INSERT INTO bookings VALUES (?)", (amount,))
    return amount


@workflow
async def booking(amount: int) -> int:
    return await book(amount)


async def test_a_transactional_step_runs_on_a_file_and_is_stubbed_in_memory(tmp_path: Path) -> None:
    async with Environment() as env:
        env.stub(book, returns=7)
        assert await env.run(booking, 5) == 7
        assert env.calls(book)[0].arguments == {"amount": 5}
    path = tmp_path / "onward.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookings (amount INTEGER)")
    connection.close()
    async with Environment(url=f"sqlite:///{path}") as env:
        assert await env.run(booking, 5) == 5
        assert env.calls(book)[0].arguments == {"amount": 5}
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT amount FROM bookings").fetchall() == [(5,)]
    connection.close()


async def test_an_unstubbed_transactional_step_in_memory_says_what_to_do() -> None:
    async with Environment() as env:
        with pytest.raises(WorkflowFailed, match="has no transactional steps"):
            await env.run(booking, 5)
