"""The connections given to the bodies of transactional steps: ordinary psycopg ones that cannot end their transaction.

What psycopg offers for that is refused before anything is sent, and so is a statement that says COMMIT or ROLLBACK; savepoints
(`with connection.transaction():`) are the body's to use. A statement that ends the transaction all the same, hidden in a
function's text for instance, is found out at the end (steps.py).
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, NoReturn

import psycopg
from psycopg import sql

from onward.errors import UsageError

CURE = (
    "Onward commits a transactional step together with its journal entry; use 'with connection.transaction():' for a part that "
    "may fail, or raise to roll everything back"
)
_SKIPPED = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/|;)*", re.DOTALL)
_ENDS = re.compile(
    r"(commit|end|abort|begin|start\s+transaction|prepare\s+transaction|rollback(?!\s+(work\s+|transaction\s+)?to\b))\b",
    re.IGNORECASE,
)


def _refuse(what: str) -> NoReturn:
    raise UsageError(f"{what} is refused in a transactional step: {CURE}")


def _check(query: Any, connection: Any) -> None:
    if not connection.is_lent:
        return
    if isinstance(query, sql.Composable):
        text = query.as_string(connection)
    elif isinstance(query, bytes):
        text = query.decode(errors="replace")
    else:
        text = str(query)
    start = _SKIPPED.match(text)
    found = _ENDS.match(text, start.end() if start else 0)
    if found is not None:
        _refuse(found[1].upper())


class StepCursor(psycopg.Cursor[Any]):
    """Refuses statements that would end the transaction."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        """As psycopg's."""
        _check(query, self.connection)
        return super().execute(query, params, **options)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> Any:
        """As psycopg's."""
        _check(query, self.connection)
        return super().executemany(query, params_seq, **options)


class AsyncStepCursor(psycopg.AsyncCursor[Any]):
    """Refuses statements that would end the transaction."""

    async def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        """As psycopg's."""
        _check(query, self.connection)
        return await super().execute(query, params, **options)

    async def executemany(self, query: Any, params_seq: Any, **options: Any) -> Any:
        """As psycopg's."""
        _check(query, self.connection)
        return await super().executemany(query, params_seq, **options)


class StepConnection(psycopg.Connection[Any]):
    """What a `def` body gets."""

    is_lent = False
    """While a body has it."""

    def commit(self) -> None:
        """Refused while a body has it."""
        if self.is_lent:
            _refuse("commit()")
        super().commit()

    def rollback(self) -> None:
        """Refused while a body has it."""
        if self.is_lent:
            _refuse("rollback()")
        super().rollback()

    def close(self) -> None:
        """Refused while a body has it."""
        if self.is_lent:
            _refuse("close()")
        super().close()

    def set_autocommit(self, value: bool) -> None:
        """Refused while a body has it."""
        if self.is_lent:
            _refuse("autocommit")
        super().set_autocommit(value)

    def __enter__(self) -> NoReturn:
        _refuse("'with connection:', which commits at its end,")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class AsyncStepConnection(psycopg.AsyncConnection[Any]):
    """What an `async def` body gets."""

    is_lent = False

    async def commit(self) -> None:
        """Refused while a body has it."""
        if self.is_lent:
            _refuse("commit()")
        await super().commit()

    async def rollback(self) -> None:
        """Refused while a body has it."""
        if self.is_lent:
            _refuse("rollback()")
        await super().rollback()

    async def close(self) -> None:
        """Refused while a body has it."""
        if self.is_lent:
            _refuse("close()")
        await super().close()

    async def set_autocommit(self, value: bool) -> None:
        """Refused while a body has it."""
        if self.is_lent:
            _refuse("autocommit")
        await super().set_autocommit(value)

    async def __aenter__(self) -> NoReturn:
        _refuse("'async with connection:', which commits at its end,")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
