"""A PostgreSQL database of its own for a page that wants one (`snippet: postgres`), and its `sql` blocks.

The database is the one that `ONWARD_DATABASE_URL` names from then on, for Python and for commands. A statement whose last line
ends with `-- -> text` has that text as its first row (values with ` | ` between them); outside a transaction it is asked again until it
has, as a reader would who waits for a worker.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg.pq import TransactionStatus

from tests.docs.shown import agrees
from tests.docs.terminal import WrongOutput
from tests.postgres.server import server_url

DEADLINE_S = 30
_ARROW = re.compile(r"--\s*->\s?(.*)$")


class OwnDatabase:
    """An empty database on the tests' server; the schema `onward` and the roles are the page's to make."""

    def __init__(self) -> None:
        name = f"docs_{os.getpid()}"
        with psycopg.connect(server_url(), autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name}".encode())
        url = urlunsplit(urlsplit(server_url())._replace(path=f"/{name}"))
        os.environ["ONWARD_DATABASE_URL"] = url
        self._conn = psycopg.connect(url, autocommit=True)

    def close(self) -> None:
        """The server, and with it the database and its roles, goes with this process."""
        self._conn.close()

    def run(self, line: int, code: str, here: Path) -> Iterator[int]:
        """Run the statements of a block, telling the line of each before it runs."""
        for number, statement, expected in statements(code):
            yield line + number
            self._run(statement, expected, here)

    def _run(self, statement: str, expected: str | None, here: Path) -> None:
        give_up_at = time.monotonic() + DEADLINE_S
        while True:
            cursor = self._conn.execute(statement.encode())
            row = cursor.fetchone() if cursor.description else None
            if expected is None:
                return
            said = "nothing" if row is None else " | ".join(map(_shown, row))
            if agrees(expected, said, here):
                return
            if time.monotonic() > give_up_at or self._conn.info.transaction_status != TransactionStatus.IDLE:
                raise WrongOutput(f"should give {expected!r} and gave {said!r}")
            time.sleep(0.05)


def statements(code: str) -> Iterator[tuple[int, str, str | None]]:
    """The statements of a block: the number of the line where each begins, its text, and what it is said to give."""
    begins, text = 0, ""
    for number, line in enumerate(code.splitlines()):
        bare = re.sub(r"(^|\s)--.*$", "", line).rstrip()
        if not text:
            begins = number
        if bare or text:
            text += bare + "\n"
        if bare.endswith(";") and text.count("$$") % 2 == 0:
            arrow = _ARROW.search(line)
            yield begins, text, arrow[1].strip() if arrow else None
            text = ""
    if text.strip():
        raise WrongOutput(f"a statement does not end with a semicolon: {text.strip()[:60]!r}")


def _shown(value: object) -> str:
    """As psql shows it."""
    match value:
        case None:
            return "null"
        case bool():
            return "t" if value else "f"
        case _:
            return str(value)
