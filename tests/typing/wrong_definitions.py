"""Wrong uses of the definitions: each type checker must report an error on exactly the marked lines."""

from typing import Any

from onward.definitions import call, step, workflow


@step
def parse(text: str) -> int:
    return int(text)


@step
async def fetch(url: str) -> bytes:
    return url.encode()


@step(transactional=True)
def load(connection: Any, row: dict[str, int]) -> int:
    return len(row)


@workflow
async def child(item: str) -> list[str]:
    return [item]


def plain(number: int) -> str:
    return str(number)


async def uses() -> None:
    await parse(7)  # error
    await parse()  # error
    await parse("7", base=8)  # error
    wrong_result: str = await parse("7")  # error
    not_awaited: int = parse("7")  # error
    not_awaited_async: bytes = fetch("u")  # error
    await load(None, {"a": 1})  # error
    await load({"a": "b"})  # error
    await child(3)  # error
    wrong_child: str = await child("a")  # error
    await call(plain, "x")  # error
    await parse.using(key=3)("7")  # error
    await parse.using(id="x")("7")  # error
    child.using(key="x")  # error
    child.using(delay="1h")  # error
    child.using(tags={"a": 1})  # error
    child.using(run_at=5)  # error
    child.bind(1)  # error
    child.bind()  # error
    print(wrong_result, not_awaited, not_awaited_async, wrong_child)


@workflow  # error
def not_async(item: str) -> str:
    return item


@step(retry="3")  # error
def bad_retry(item: str) -> str:
    return item


@step(on_cancel="ignore")  # error
def bad_cancel(item: str) -> str:
    return item


@step(raises=("ValueError",))  # error
def bad_raises(item: str) -> str:
    return item


@workflow(retry=3)  # error
async def bad_option(item: str) -> str:
    return item
