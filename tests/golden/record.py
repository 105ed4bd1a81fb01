"""Records the golden histories of the running Python: `python -m tests.golden.record [NAME…]`.

Runs the workflows of flows.py with a real worker on the memory store, and writes what a claim would read of each to
`<Python minor>/NAME.json` beside this file. Existing files are kept unless named: a history that code of today records
differently is a new history, not a better one.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec

from onward import AsyncClient, AsyncHandle, Worker, WorkflowFailed
from onward._engine.engine import VERSION
from onward._engine.failures import read
from onward._store.memory.state import Row
from onward._store.memory.store import MemoryStore
from onward._store.records import Entry
from tests.golden.flows import FLOWS, approved, note, small

FOLDER = Path(__file__).parent
URL = "memory://golden"
ARGUMENTS: dict[str, tuple[Any, ...]] = {"sequence": (41,), "gathered": (4,), "grouped": (3,)}


class Golden(msgspec.Struct, kw_only=True):
    """One recorded history, as it is claimed and as it ended."""

    type: str
    id: str
    version: str
    seed: str
    payload: str
    started_at: int
    attempts: int
    status: str
    result: str | None
    error_type: str | None
    entries: list[Entry]


def files() -> list[Path]:
    """Every recorded history."""
    return sorted(FOLDER.glob("*/*.json"))


def load(path: Path) -> Golden:
    """Read one."""
    return msgspec.json.decode(path.read_bytes(), type=Golden)


async def _run(name: str, client: AsyncClient) -> None:
    flow = FLOWS[name].using(id=name, timeout=0.3 if name == "overdue" else None)
    if name in ("sequence", "gathered", "grouped"):
        handle: AsyncHandle[Any] = await client.start(flow, *ARGUMENTS[name])
    else:
        handle = await client.start(flow)
    if name == "signalled":
        await client.signal(handle, approved, True)
        await client.signal(handle, note, "first")
        await client.signal(handle, note, "second")
    if name == "stopped":
        while await handle.status() != "waiting":
            await asyncio.sleep(0.01)
        await handle.cancel()
    try:
        await handle.result(timeout=30)
    except WorkflowFailed:
        pass


def _golden(row: Row) -> Golden:
    entries = [_plain(entry) for seq, entry in sorted(row.entries.items()) if seq not in row.struck]
    return Golden(
        type=row.new.type,
        id=row.new.id,
        version=row.version or "",
        seed=row.new.seed,
        payload=row.new.payload,
        started_at=row.started_at or 0,
        attempts=row.attempts,
        status=row.status,
        result=row.result,
        error_type=read(row.error).type if row.error else None,
        entries=entries,
    )


def _plain(entry: Entry) -> Entry:
    """Without the traceback's text, which names files of the machine."""
    if entry.error is None:
        return entry
    record = msgspec.structs.replace(read(entry.error), traceback="")
    return msgspec.structs.replace(entry, error=msgspec.json.encode(record).decode())


async def main(chosen: list[str]) -> None:
    """Record what is chosen, else what has no file yet."""
    folder = FOLDER / VERSION.partition("/")[2]
    folder.mkdir(exist_ok=True)
    names = chosen or [name for name in FLOWS if not (folder / f"{name}.json").exists()]
    store = MemoryStore("golden")
    async with AsyncClient(URL) as client, Worker(URL, workflows=[*FLOWS.values(), small]):
        await asyncio.gather(*[_run(name, client) for name in names])
    for name in names:
        golden = _golden(store._database.rows[name])
        path = folder / f"{name}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(golden), indent=1) + b"\n")
        print(f"{path.relative_to(FOLDER)}: {golden.status}, {len(golden.entries)} entries")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
