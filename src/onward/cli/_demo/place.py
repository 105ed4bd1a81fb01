"""Where `onward demo` plays: a fresh SQLite file here, a fresh schema of a PostgreSQL server in postgres.py.

A place knows how to be read without Onward, after all workers are gone, and how to be removed. The pipeline's own table lies
beside Onward's; `insert` is the one statement whose words differ between the two drivers.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onward.cli._demo.sources import Document


class Database(Protocol):
    """What the pipeline's steps are given: a connection of `sqlite3` or of `psycopg`."""

    def execute(self, query: str, values: Sequence[object] = (), /) -> object:
        """Run a statement."""


def insert(database: Database, table: str, document: Document) -> None:
    """Add a document's row."""
    mark = "?" if isinstance(database, sqlite3.Connection) else "%s"
    database.execute(
        f"INSERT INTO {table} (path, digest, kind, lines, title) VALUES ({', '.join([mark] * 5)})",  # noqa: S608  (a name of our own)
        (document.path, document.digest, document.kind, document.lines, document.title),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What a finished place holds, read without Onward."""

    documents: list[tuple[str, str, str]]
    """Path, digest and kind of each row."""
    status: str
    result: str | None
    """As JSON."""
    recorded: list[tuple[str, float]]
    """Key of each recorded step, and when at the latest it was recorded: microseconds since 1970 by this machine's clock."""


class Place(Protocol):
    """A database that does not exist yet."""

    @property
    def url(self) -> str:
        """For clients and workers; may hold a password."""

    @property
    def shown(self) -> str:
        """What people call it; no password."""

    @property
    def kind(self) -> str:
        """`file` or `schema`."""

    @property
    def table(self) -> str:
        """The pipeline's own table."""

    @property
    def lease(self) -> str | None:
        """The workers' lease, where it is not the usual one."""

    def find(self, workflow_id: str) -> Found:
        """Read it."""

    def commands(self, workflow_id: str) -> list[str]:
        """For the user's shell: what to look at it with."""

    def farewell(self) -> str | None:
        """For the user's shell: what removes it, unless it goes with the demo's folder."""

    def remove(self) -> None:
        """Remove it, and nothing else."""


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A file."""

    path: Path
    kind: str = "file"
    table: str = "documents"
    lease: str | None = None

    @property
    def url(self) -> str:
        """Its absolute URL."""
        return f"sqlite:///{self.path}"

    @property
    def shown(self) -> str:
        """Its path."""
        return str(self.path)

    def find(self, workflow_id: str) -> Found:
        """Read it with plain `sqlite3`."""
        with contextlib.closing(sqlite3.connect(f"{self.path.as_uri()}?mode=rw", uri=True)) as database:
            database.execute("PRAGMA query_only = ON")
            documents = database.execute("SELECT path, digest, kind FROM documents").fetchall()
            status, result = database.execute(
                "SELECT status, result FROM onward_workflows WHERE id = ?", (workflow_id,)
            ).fetchone()
            recorded = database.execute(
                "SELECT key, finished_at FROM onward_journal"
                " WHERE workflow_id = ? AND kind = 'step' AND struck = 0 AND error IS NULL",
                (workflow_id,),
            ).fetchall()
        return Found(documents, status, result, recorded)

    def commands(self, workflow_id: str) -> list[str]:
        """With onward and sqlite3."""
        query = "SELECT kind, count(*) FROM documents GROUP BY kind"
        return [
            f"onward show {workflow_id} --url {shlex.quote(self.url)}",
            f"sqlite3 {shlex.quote(str(self.path))} '{query}'",
        ]

    def farewell(self) -> None:
        """It lies in the demo's folder."""

    def remove(self) -> None:
        """The file, and what SQLite and the workers put beside it."""
        for name in (self.path, *self.path.parent.glob(f"{self.path.name}-*")):
            if name.is_dir():
                shutil.rmtree(name)
            else:
                name.unlink(missing_ok=True)
