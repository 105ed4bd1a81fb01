"""The daily data pipeline of `onward demo`: collect documents, classify each, drop duplicates, load the rest into a table.

Read it as you would write your own: three steps that do the work, one workflow that says in which order. The worker processes
import this module by its name; `BodyLog` and `RateLimiter` stand for the world outside (see service.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from onward import progress, step, workflow
from onward.cli._demo.place import Database, insert
from onward.cli._demo.service import BodyLog, RateLimiter
from onward.cli._demo.sources import Document, examine, source_files


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run of the pipeline returns."""

    collected: int
    loaded: int
    duplicates: dict[str, str]


@step
def collect(folder: str, items: int) -> list[str]:
    """Find the documents."""
    with BodyLog(folder).body():
        return source_files(items)


@step
def classify(folder: str, path: str) -> Document:
    """Ask the classifier, whose rate limiter may answer: later (`RetryLater` spends no try)."""
    with BodyLog(folder).body():
        RateLimiter(folder).take()
        return examine(path)


@step(transactional=True)
def prepare(database: Database, folder: str, table: str) -> None:
    """Make the table. It has no unique key on purpose: a document loaded twice would be there twice."""
    with BodyLog(folder).body():
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (path TEXT, digest TEXT, kind TEXT, lines INTEGER, title TEXT)"
        )


@step(transactional=True)
def load(database: Database, folder: str, table: str, document: Document) -> None:
    """Insert the row and record the step in one transaction: both are there after a crash, or neither."""
    with BodyLog(folder).body():
        insert(database, table, document)


@workflow
async def daily_pipeline(folder: str, table: str, items: int) -> Totals:
    """Plain Python; after a crash it goes on at the first step that is not recorded."""
    paths = await collect(folder, items)
    await prepare(folder, table)
    first_with: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    for number, path in enumerate(paths, 1):
        document = await classify(folder, path)
        first = first_with.setdefault(document.digest, path)
        if first == path:
            await load(folder, table, document)
        else:
            duplicates[path] = first
        progress({"items": number, "duplicates": len(duplicates)})
    return Totals(len(paths), len(first_with), duplicates)
