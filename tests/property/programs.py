"""Random workflow programs: a small language as JSON, its generator, and the workflow function that interprets it.

A program is a block: a list of nodes, each a list whose first item is its name. The interpreter writes a trace of everything
it does, in order; two runs of one program that agree in trace, commands and end are taken to be the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from onward.context import Signal, now, patched, progress, random, sleep, start, uuid4
from onward.definitions import step, workflow
from onward.errors import StepFailed, WorkflowFailed

Node = list[Any]
Block = list[Node]
Choose = Callable[[int], int]
"""Gives a number from 0 to below the argument."""

TRACE: list[str] = []
"""What the program that runs now has done; emptied by whoever starts one."""

SIGNALS = {name: Signal(name, int) for name in ("red", "blue")}


class Listed(Exception):
    """An error that comes back as itself."""


@step
def work(tag: int) -> int:
    return tag


@step(raises=(Listed,))
def fail(tag: int) -> int:
    raise Listed(tag) if tag % 2 else ValueError(tag)


@step(on_cancel="wait")
def steady(tag: int) -> int:
    return tag


@workflow
async def child(tag: int) -> int:
    return tag


@workflow
async def program(source: str) -> list[str]:
    await _Interpreter().block(json.loads(source))
    return TRACE[-20:]


class _Interpreter:
    async def block(self, block: Block) -> int:
        for node in block:
            TRACE.append(f"> {node[0]}")
            try:
                await getattr(self, node[0])(*node[1:])
            except BaseException as error:
                TRACE.append(f"! {node[0]} {type(error).__name__}")
                raise
            TRACE.append(f"< {node[0]}")
        return len(block)

    async def step(self, tag: int) -> None:
        TRACE.append(f"work {await work(tag)}")

    async def fails(self, tag: int) -> None:
        await fail(tag)

    async def steady(self, tag: int) -> None:
        TRACE.append(f"steady {await steady(tag)}")

    async def late(self, tag: int) -> None:
        calls = [work(tag), work(tag + 1)]
        for call in reversed(calls):
            TRACE.append(f"late {await call}")

    async def sleep(self, seconds: int) -> None:
        await (asyncio.sleep(seconds) if seconds % 2 else sleep(seconds))

    async def signal(self, name: str, timeout: int | None) -> None:
        try:
            TRACE.append(f"{name} {await SIGNALS[name].wait(timeout)}")
        except TimeoutError:
            TRACE.append(f"{name} late")

    async def gather(self, blocks: list[Block], collects: bool) -> None:
        results = await asyncio.gather(*map(self.block, blocks), return_exceptions=collects)
        TRACE.append(f"gathered {[type(item).__name__ for item in results]}")

    async def gather_calls(self, count: int) -> None:
        TRACE.append(f"gathered {await asyncio.gather(*(work(tag) for tag in range(count)))}")

    async def group(self, blocks: list[Block]) -> None:
        async with asyncio.TaskGroup() as group:
            for block in blocks:
                group.create_task(self.block(block))

    async def first(self, blocks: list[Block], timeout: int | None) -> None:
        tasks = [asyncio.create_task(self.block(block)) for block in blocks]
        done, pending = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for task in done:
            TRACE.append(f"done {await work(tasks.index(task))}")
        if pending:
            await asyncio.wait(pending)
        for task in tasks:
            if not task.cancelled():
                TRACE.append(f"outcome {type(task.exception()).__name__}")

    async def completed(self, blocks: list[Block], timeout: int | None) -> None:
        tasks = [asyncio.create_task(self.block(block)) for block in blocks]
        try:
            for item in asyncio.as_completed(tasks, timeout=timeout):
                TRACE.append(f"completed {await item}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    TRACE.append(f"outcome {type(task.exception()).__name__}")

    async def completed_calls(self, count: int) -> None:
        for item in asyncio.as_completed([work(tag) for tag in range(count)]):
            TRACE.append(f"completed {await item}")

    async def timeout(self, seconds: int, block: Block) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.block(block)
        except TimeoutError:
            TRACE.append("timed out")

    async def wait_for(self, seconds: int, block: Block) -> None:
        try:
            await asyncio.wait_for(self.block(block), seconds)
        except TimeoutError:
            TRACE.append("timed out")

    async def gather_again(self, blocks: list[Block]) -> None:
        tasks = [asyncio.create_task(self.block(block)) for block in blocks]
        await asyncio.wait(tasks)
        TRACE.append(f"gathered {len(await asyncio.gather(*tasks, return_exceptions=True))}")

    async def shield(self, block: Block) -> None:
        task = asyncio.create_task(self.block(block))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            TRACE.append("shielded")
            await task
            raise

    async def catch(self, block: Block, handler: Block, cleanup: Block) -> None:
        try:
            await self.block(block)
        except (StepFailed, WorkflowFailed, Listed, ValueError) as error:
            TRACE.append(f"caught {type(error).__name__} {error}")
            await self.block(handler)
        except BaseExceptionGroup as group:
            TRACE.append(f"caught {[type(error).__name__ for error in group.exceptions]}")
            await self.block(handler)
        finally:
            await self.block(cleanup)

    async def swallow(self, block: Block) -> None:
        try:
            await self.block(block)
        except asyncio.CancelledError:
            TRACE.append("swallowed")

    async def stream(self, count: int, stop: int, block: Block, cleanup: Block) -> None:
        async def items() -> AsyncIterator[int]:
            try:
                for item in range(count):
                    await self.block(block)
                    yield item
            finally:
                TRACE.append("stream ends")
                await self.block(cleanup)

        async for item in items():
            TRACE.append(f"item {item}")
            if item == stop:
                break

    async def queue(self, count: int) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)

        async def produce(base: int) -> None:
            for tag in range(count):
                await queue.put(await work(base + tag))

        async with asyncio.TaskGroup() as group:
            group.create_task(produce(0))
            group.create_task(produce(100))
            for _ in range(2 * count):
                TRACE.append(f"got {await queue.get()}")

    async def lock(self, block: Block) -> None:
        lock = asyncio.Lock()

        async def one() -> None:
            async with lock:
                await self.block(block)

        await asyncio.gather(one(), one())

    async def spawn(self, block: Block) -> None:
        asyncio.create_task(self.block(block))  # noqa: RUF006  # left over on purpose
        await asyncio.sleep(0)

    async def wrong(self) -> None:
        raise ValueError("wrong")

    async def draw(self) -> None:
        TRACE.append(f"drew {random()} {uuid4()} {now()} {asyncio.get_running_loop().time()}")

    async def show(self, value: int) -> None:
        progress(value)

    async def patch(self, name: str, block: Block) -> None:
        if patched(name):
            await self.block(block)

    async def child(self, tag: int) -> None:
        TRACE.append(f"child {await child(tag)}")

    async def start(self, tag: int) -> None:
        handle = await start(child, tag)
        await work(tag)
        TRACE.append(f"{handle.id} {await handle.result()}")


VERSION_DEPENDENT = frozenset({"wait_for", "gather_again"})
"""Nodes whose order of events differs between Python versions: until 3.12 `wait_for` made a task, and `gather` of tasks that
are done already took a turn of the loop."""


def names_in(block: Block) -> set[str]:
    """The names of all nodes of a block."""
    found: set[str] = set()
    todo: list[Any] = list(block)
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            if item and isinstance(item[0], str):
                found.add(item[0])
            todo += item
    return found


def build(choose: Choose, depth: int = 3) -> Block:
    """Make a random block."""
    return [_node(choose, depth) for _ in range(1 + choose(3))]


def _node(choose: Choose, depth: int) -> Node:
    nodes = _LEAVES if depth <= 0 else _ALL
    name = nodes[choose(len(nodes))]

    def inner() -> Block:
        return build(choose, depth - 1)

    def blocks() -> list[Block]:
        return [inner() for _ in range(2 + choose(2))]

    def limit() -> int | None:
        return None if choose(2) else 1 + choose(9)

    match name:
        case "step" | "fails" | "steady" | "late" | "child" | "start" | "show":
            return [name, choose(10)]
        case "sleep":
            return [name, choose(9)]
        case "signal":
            return [name, "red" if choose(2) else "blue", limit()]
        case "gather":
            return [name, blocks(), bool(choose(2))]
        case "gather_calls" | "completed_calls" | "queue":
            return [name, 1 + choose(4)]
        case "group" | "gather_again":
            return [name, blocks()]
        case "first" | "completed":
            return [name, blocks(), limit()]
        case "timeout" | "wait_for":
            return [name, 1 + choose(9), inner()]
        case "catch":
            return [name, inner(), inner() if choose(2) else [], inner() if choose(3) == 0 else []]
        case "stream":
            return [name, 1 + choose(4), choose(5), inner(), inner() if choose(2) else [["step", 77]]]
        case "patch":
            return [name, "p" if choose(2) else "q", inner()]
        case "swallow" | "shield" | "lock" | "spawn":
            return [name, inner()]
        case _:
            return [name]


_LEAVES = ("step", "step", "fails", "steady", "late", "sleep", "signal", "draw", "child", "show", "wrong")
_ALL = (
    *_LEAVES, "start", "gather", "gather_calls", "group", "group", "first", "first", "completed", "completed_calls", "timeout", "timeout",
    "wait_for", "gather_again", "shield", "catch", "catch", "catch", "swallow", "stream", "stream", "queue", "lock", "spawn", "patch", "patch",
)  # fmt: skip
