"""The one place that decides which of the four kinds of StoreError an error of SQLite is.

The decision rests on the result code alone (never on the text), and on whether it came from COMMIT: only there an I/O error
leaves the outcome unknown. The triggers of a move (transfer.py) have a code of their own, and bring the URL in their text.
"""

from __future__ import annotations

import sqlite3

from onward.errors import (
    FatalStoreError,
    OnwardError,
    OutcomeUnknown,
    StoreConflict,
    StoreImporting,
    StoreMoved,
    TransientStoreError,
)

MOVED, IMPORTING = "onward: moved to ", "onward: being copied from "
"""How the text begins with which triggers refuse a write; the rest is the other database's URL."""

_TRANSIENT: dict[int, str] = {
    sqlite3.SQLITE_BUSY: "another connection holds the write lock",
    sqlite3.SQLITE_LOCKED: "a table is locked",
    sqlite3.SQLITE_ABORT: "the statement was aborted",
    sqlite3.SQLITE_INTERRUPT: "the statement was interrupted",
    sqlite3.SQLITE_PROTOCOL: "the file's locks are contended",
    sqlite3.SQLITE_SCHEMA: "the schema changed meanwhile",
    sqlite3.SQLITE_NOMEM: "out of memory",
    sqlite3.SQLITE_IOERR: "an I/O error; see the system's log",
}
_CONFLICT: dict[int, str] = {
    sqlite3.SQLITE_CONSTRAINT: "a constraint refuses the data",
    sqlite3.SQLITE_MISMATCH: "a value has the wrong type",
    sqlite3.SQLITE_TOOBIG: "a value is larger than SQLite allows",
    sqlite3.SQLITE_RANGE: "a parameter is out of range",
}
_FATAL: dict[int, str] = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space",
    sqlite3.SQLITE_READONLY: "the file or its directory is read-only: make both writable for this user",
    sqlite3.SQLITE_PERM: "access is denied: make the file and its directory writable for this user",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore a backup, or save what can be saved with 'sqlite3 FILE .recover'",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database: check the URL",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened: check that it and its directory exist and are writable",
    sqlite3.SQLITE_AUTH: "the operation is not authorized",
    sqlite3.SQLITE_ERROR: "the statement failed; is this another program's database, or was a table of Onward changed?",
}


def classify(error: sqlite3.Error, *, database: str, committing: bool = False) -> OnwardError:
    """The StoreError for an error of SQLite; raise it `from` the original. StoreMoved or StoreImporting from a trigger."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER:
        text = str(error)
        if text.startswith(MOVED):
            return StoreMoved(f"sqlite:///{database}", text.removeprefix(MOVED))
        if text.startswith(IMPORTING):
            return StoreImporting(f"sqlite:///{database}", text.removeprefix(IMPORTING))
    primary = -1 if code is None else code & 0xFF
    name: str = getattr(error, "sqlite_errorname", "") or type(error).__name__
    detail = f"{database}: {name}: {error}"
    if committing and primary == sqlite3.SQLITE_IOERR:
        return OutcomeUnknown(f"{detail}; the commit failed half-way: look before writing again")
    if primary in _TRANSIENT:
        return TransientStoreError(f"{detail}; {_TRANSIENT[primary]}; nothing was written, try again")
    if primary in _CONFLICT:
        return StoreConflict(f"{detail}; {_CONFLICT[primary]}; nothing was written")
    return FatalStoreError(f"{detail}; {_FATAL.get(primary, 'the database cannot be used as it is')}")
