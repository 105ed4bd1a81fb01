"""Right uses of the definitions: both type checkers must accept every line and agree on every inferred type."""

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, assert_type

from onward.definitions import BoundWorkflow, Step, Workflow, call, step, workflow
from onward.retry import Retry


class Connection:
    """Stands for a driver's connection."""


@step
def parse(text: str, base: int = 10) -> int:
    return int(text, base)


@step
async def fetch(url: str) -> bytes:
    return url.encode()


@step(retry=Retry(tries=4, delay=1.0), raises=(ValueError,), timeout=timedelta(seconds=3))
def send(user_id: int, *, template: str) -> str:
    return f"{user_id}{template}"


@step(name="slow", on_cancel="wait", check_args=False)
async def slow(seconds: float) -> None: ...


@step(transactional=True)
def load(connection: Connection, row: dict[str, int]) -> int:
    return len(row)


@step(transactional=True, raises=KeyError)
async def store(connection: Connection, row: dict[str, int], *, table: str = "t") -> str:
    return table


class Mailer:
    @staticmethod
    @step
    def deliver(address: str) -> bool:
        return bool(address)


@workflow
async def child(item: str, times: int = 1) -> list[str]:
    return [item] * times


@workflow(name="parent", also=["old_parent"], queue="q", max_attempts=3, backoff=Retry(tries=1))
async def parent(user_id: int) -> str:
    assert_type(await parse("7"), int)
    assert_type(await parse("7", base=8), int)
    assert_type(await fetch("u"), bytes)
    assert_type(await send(user_id, template="t"), str)
    await slow(1.5)
    assert_type(await load({"a": 1}), int)
    assert_type(await store({"a": 1}, table="x"), str)
    assert_type(await Mailer.deliver("a@b"), bool)
    assert_type(await parse.using(key="k")("7"), int)
    assert_type(await child("a", times=2), list[str])
    assert_type(await child.using(id="c")("a"), list[str])
    assert_type(await call(len, "abc"), int)
    assert_type(await call(plain, 1), str)
    assert_type(await call(plain_async, 1), float)
    assert_type(await step(name="len", retry=3)(plain)(2), str)
    return "done"


@workflow
async def declared(user_id: int) -> str: ...  # type: ignore[empty-body]  # a bare declaration


def plain(number: int) -> str:
    return str(number)


async def plain_async(number: int) -> float:
    return float(number)


assert_type(parent.using(id="p", delay=timedelta(hours=1)).bind(1), BoundWorkflow[str])

as_step: Step[[str], bytes] = fetch
as_workflow: Workflow[[int], str] = parent
widened: Workflow[..., object] = parent
bound: BoundWorkflow[object] = child.bind("a")

not_yet_awaited: Coroutine[Any, Any, int] = parse("1")
bare: Callable[[int], Coroutine[Any, Any, str]] = parent.fn
