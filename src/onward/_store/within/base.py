"""What a client's write in its caller's transaction needs of the caller's connection, and of the store.

A store gives the SQL, as a script (`WritesWithin.write_within`); an adapter of the caller's driver (`Caller`) carries out its
statements, on the caller's own thread or loop. Neither knows the other: a new driver is one adapter and its line in kinds.py,
a new database one script. Nothing here commits, rolls back or closes what belongs to the caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from onward._store.operations import CancelOp, Outcome, SignalOp, StartOp
from onward._store.scripts import Rows, Script


class HasCommit(Protocol):
    """sqlite3, aiosqlite, psycopg, SQLAlchemy's connections and sessions."""

    def commit(self) -> object:
        """End the transaction."""
        ...

    def rollback(self) -> object:
        """Undo it."""
        ...


class HasTransaction(Protocol):
    """asyncpg."""

    def transaction(self) -> object:
        """A block that ends with a commit."""
        ...


class PassesOn(Protocol):
    """`django.db.connection`, and connections that a pool has wrapped."""

    def __getattr__(self, name: str, /) -> Any:
        """Whatever the connection behind it has."""
        ...


CallerConnection: TypeAlias = HasCommit | HasTransaction | PassesOn
"""What `tx=` takes, as far as types can say it without importing a driver; kinds.py knows which ones really work."""

CallerOp: TypeAlias = StartOp | SignalOp | CancelOp
"""The writes that may go into a caller's transaction; a start has no fence."""


class Caller(ABC):
    """A caller's connection.

    Attributes:
        title: what it is, for messages: ``a sqlite3.Connection``.
        database: whose SQL it speaks.
        connection: the driver's own connection, below any wrapper.
        cure: how its user opens a transaction.
    """

    title: str
    database: Literal["sqlite", "postgresql"]
    connection: Any
    cure: str

    @abstractmethod
    def has_transaction(self) -> bool:
        """Whether a transaction is open. Asked after a first statement that changes nothing: a driver that opens
        transactions by itself has done so by then."""

    def spelled(self, sql: str, parameters: Mapping[str, object]) -> tuple[str, Any]:
        """The statement and its parameters as this driver writes them; as they are where it knows parameters by name."""
        return sql, dict(parameters)


class BlockingCaller(Caller):
    """A connection whose calls block."""

    @abstractmethod
    def execute(self, sql: str, parameters: Mapping[str, object]) -> Rows:
        """Run one statement in the caller's transaction; raises the driver's own error, below any wrapper's."""


class AsyncCaller(Caller):
    """A connection whose calls are awaited."""

    @abstractmethod
    async def execute(self, sql: str, parameters: Mapping[str, object]) -> Rows:
        """As `BlockingCaller.execute`."""


class WritesWithin(Protocol):
    """The part of a store that writes in callers' transactions. It need not be open, and keeps nothing open."""

    url: str

    def write_within(self, ops: Sequence[CallerOp], caller: Caller) -> Script[list[Outcome]]:
        """A script that applies the operations in the transaction of `caller`, all of them or none: if one is refused, or a
        statement fails, nothing is written and the transaction goes on as it was.

        It creates nothing and migrates nothing, and what it writes wakes workers once the caller has committed.
        Raises InTransactionalStep or CodecError at the call; from the script WrongConnection (another database, or no
        transaction), SchemaError, StoreError.
        """
        ...
