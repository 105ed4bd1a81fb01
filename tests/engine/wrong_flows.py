"""Definitions that a worker refuses at its start: it looks at the steps of a workflow's module."""

from __future__ import annotations

import sqlite3

from onward import step, workflow


@step(transactional=True)
async def load(conn: sqlite3.Connection) -> None:
    """On SQLite a transactional body runs on the writer's thread, so it cannot be async."""


@workflow
async def flow() -> None:
    """Need not even call it."""
