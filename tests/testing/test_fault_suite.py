"""Every crash that the fault suite makes with SIGKILL in real processes can be made here in one process, and ends alike."""

from __future__ import annotations

import ast
import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

import onward
from onward import step, workflow
from onward.testing import CLIENT_POINTS, POINTS, CrashReport, Environment
from tests.faults import flows as fault_flows
from tests.faults.ledger import use_ledger
from tests.testing import flows

Make = Callable[..., Environment]
SOURCE = Path(onward.__file__).parent


def _points_in(path: Path) -> set[str]:
    """The points that a file passes: literal ones, and the halves of those that are put together."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("hit", "probe", "_probe"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("transaction", "_write"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            found |= {f"{name}:{when}-commit" for name in names for when in ("before", "after")}
    return found


OPERATORS = ("moving.py", "removal.py", "transfer.py")
"""What operators' commands do to a database while no worker works on it (`onward migrate --drop`, copying)."""


def test_the_kit_knows_every_failpoint_of_the_engine_and_the_stores() -> None:
    """A point that is added there has to be added to onward.testing.POINTS or CLIENT_POINTS, too."""
    found: set[str] = set()
    for folder in ("_engine", "_store"):
        for path in (SOURCE / folder).rglob("*.py"):
            if path.name not in OPERATORS:
                found |= {point for point in _points_in(path) if ":" in point}
    assert found == {*POINTS, *CLIENT_POINTS}


class Trial:
    """The fault suite's workflow with one of everything, in an environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.number = 0

    async def __call__(self, env: Environment) -> fault_flows.Report:
        self.number += 1
        self.directory.mkdir(exist_ok=True)
        use_ledger(self.directory / f"ledger{self.number}")
        if env.url.startswith("sqlite"):
            connection = sqlite3.connect(env.url.removeprefix("sqlite:///"))
            connection.execute("CREATE TABLE bookings (amount INTEGER)")
            connection.close()
        else:
            env.stub(fault_flows.book, side_effect=lambda amount: amount + 1)  # in memory there are no transactions
        handle = await env.start(fault_flows.trial.using(id="t"), 4)
        await env.signal(handle, fault_flows.go_on, "yes")
        return await handle.result()


REPORT = fault_flows.Report(16, [0, 1, 4], 40, "yes", "Refused", [1, 2], 5, 4, 4)
NAMED = [
    point for point in POINTS if point.partition(":")[0] in ("body", "flush", "claim", "register", "step", "write")
]


@pytest.mark.parametrize("point", NAMED)
async def test_a_crash_at_any_named_point_changes_nothing_in_the_outcome(
    environment: Make, tmp_path: Path, point: str
) -> None:
    for number in (1, 2, 7):
        path = tmp_path / f"{number}.db"
        async with environment() as kind:
            url = None if kind.url.startswith("memory") else f"sqlite:///{path}"
        if url is None and point.startswith("step"):
            pytest.skip("transactional steps are SQLite's")
        if number > 1 and point.startswith(("step", "register")):
            continue
        async with Environment(url=url) as env:
            env.crash_at(point, number=number)
            assert await Trial(tmp_path / str(number)).__call__(env) == REPORT


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_crash_at_every_single_point_changes_nothing_in_the_outcome(tmp_path: Path, store: str) -> None:
    async def everywhere() -> CrashReport:
        async with Environment(url=None if store == "memory" else f"sqlite:///{tmp_path}/onward.db") as env:
            return await env.crash_everywhere(Trial(tmp_path))

    report = asyncio.run(everywhere())
    assert report.value == REPORT
    assert len(report.rounds) > 100
    expected = {"body", "claim", "flush", "register", "retire", "write", *(["step"] if store == "sqlite" else [])}
    assert {point.partition(":")[0] for point in report.points} >= expected


# ---------------------------------------------------------------------- duties beside the workflows


async def _finishes(env: Environment) -> None:
    assert await env.run(flows.purchase, 5) == "charged 5; welcome to shop"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_undertaker_that_dies_leaves_the_dead_to_the_next(environment: Make, when: str) -> None:
    async with environment() as env:
        env.crash_before(flows.charge)
        env.crash_at(f"bury:{when}-commit")
        await _finishes(env)
        assert [call.key for call in env.calls()] == ["charge", "send"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_that_dies_while_it_renews_is_taken_over_from_like_any_other(
    environment: Make, when: str
) -> None:
    bodies: list[str] = []

    @step
    async def held() -> str:
        bodies.append("held")
        if len(bodies) == 1:
            await asyncio.Event().wait()
        return "done"

    @workflow
    async def flow() -> str:
        return await held()

    async with environment() as env:
        env.crash_at(f"renew:{when}-commit")
        assert await env.run(flow) == "done"
        assert bodies == ["held", "held"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_that_dies_while_it_releases_what_it_does_not_hold_loses_nothing(
    environment: Make, when: str
) -> None:
    async with environment() as env:
        env.lose_reply("claim")
        env.crash_at(f"reconcile:{when}-commit")
        await _finishes(env)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_that_dies_while_it_adopts_leaves_the_rows_due_or_waiting(environment: Make, when: str) -> None:
    @workflow(name="onboarding")
    async def other(address: str) -> str:
        return await flows.send(address, "another")

    async with environment() as env:
        handle = await env.start(flows.onboarding, "ada")
        await env.settle()
        await env.restart([other])
        with pytest.raises(onward.NonDeterminismError, match="onboarding"):
            await handle.result()
        env.crash_at(f"adopt:{when}-commit")
        await env.restart([flows.onboarding])
        assert len(await handle.result()) == 2


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_that_dies_at_the_end_of_a_graceful_stop_is_only_a_row_to_tidy_up(
    environment: Make, when: str
) -> None:
    async with environment() as env:
        await env.start(flows.approval, 1)
        await env.settle()
        crash = env.crash_at(f"retire:{when}-commit")
        await env.restart()
        assert crash.happened == 1
        await _finishes(env)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_that_dies_in_a_migration_leaves_a_schema_or_none(tmp_path: Path, when: str) -> None:
    """On a file that nobody has opened yet: the worker comes before the client."""
    env = Environment(url=f"sqlite:///{tmp_path}/onward.db", workflows=[flows.purchase])
    crash = env.crash_at(f"migrate:{when}-commit")
    async with env:
        assert crash.happened == 1
        await _finishes(env)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_that_dies_while_it_registers_never_was_one(environment: Make, when: str) -> None:
    async with environment() as env:
        crash = env.crash_at(f"register:{when}-commit", times=2)
        await _finishes(env)
        assert crash.happened == 2
