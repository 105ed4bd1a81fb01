"""Another process on the same file; run by test_sqlite_processes.py as `python process.py URL COMMAND ARGUMENTS…`.

Every command says "ready" on its standard output, waits for a line on its standard input, does its work and prints the result.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time

from onward._store.base import Store
from onward._store.opening import open_store
from onward._store.operations import Fence, FinishOp, JournalOp, StartOp
from onward._store.records import ClaimRequest, Entry, NewWorkflow, WorkerRow

HOUR_US = 3_600_000_000


def say(*words: object) -> None:
    print(*words, flush=True)


def wait() -> None:
    sys.stdin.readline()


def start_op(workflow_id: str) -> StartOp:
    new = NewWorkflow(id=workflow_id, type="flow", payload="[]", digest="d", seed=secrets.token_hex(16))
    return StartOp(new)


def register(store: Store, worker_id: str) -> object:
    leases = store.leases()
    row = WorkerRow(
        id=worker_id, name="p", host="h", pid=os.getpid(), queues=("default",), types=("flow",), code_version="c"
    )
    leases.register(row, HOUR_US)
    return leases


async def claim(store: Store, worker_id: str, limit: int = 7) -> list[Fence]:
    request = ClaimRequest(
        worker=worker_id, queue="default", types=("flow",), limit=limit, version="1/3.11", code_version="c"
    )
    return [Fence(one.id, worker_id, one.epoch) for one in await store.claim(request)]


async def open_it(store: Store) -> None:
    """Open a file that may not exist yet."""
    say("ready")
    wait()
    await store.open()
    say("opened")


async def drain(store: Store, worker_id: str) -> None:
    """Claim, record and finish until nothing is due; print what was finished."""
    await store.open()
    leases = register(store, worker_id)
    say("ready")
    wait()
    done: list[str] = []
    while fences := await claim(store, worker_id):
        for number, fence in enumerate(fences):
            entry = Entry(1, "s", "step", number, "1")
            outcomes = await store.write([JournalOp(fence, (entry,)), FinishOp(fence, "completed", f'"{worker_id}"')])
            assert "LeaseLost" not in repr(outcomes)
            done.append(fence.workflow_id)
    say(" ".join(done))
    leases.retire(worker_id)  # type: ignore[attr-defined]


async def hold(store: Store, worker_id: str) -> None:
    """Claim what is there and hold it until killed."""
    await store.open()
    leases = register(store, worker_id)
    held = await claim(store, worker_id, limit=1000)
    say(f"ready {len(held)}")
    wait()
    del leases


async def beat(store: Store, count: str) -> None:
    """Commit at uneven intervals; print the monotonic time before and after each commit."""
    await store.open()
    say("ready")
    wait()
    for number in range(int(count)):
        time.sleep(0.031 + 0.0037 * (number % 7))
        began = time.monotonic()
        await store.write([start_op(f"beat{number}")])
        say(began, time.monotonic())


async def die(store: Store, point: str) -> None:
    """Kill this process at one point of a write."""
    await store.open()
    say("ready")
    wait()

    def probe(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    store._database.probe = probe  # type: ignore[attr-defined]
    await store.write([start_op("a"), start_op("b")])


async def main(url: str, command: str, *arguments: str) -> None:
    store = open_store(url)
    commands = {"open": open_it, "drain": drain, "hold": hold, "beat": beat, "die": die}
    await commands[command](store, *arguments)  # type: ignore[operator]
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
