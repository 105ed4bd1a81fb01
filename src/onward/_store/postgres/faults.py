"""The one place that decides which of the four kinds of StoreError an error of PostgreSQL is.

The decision rests on the SQLSTATE alone, and on whether a COMMIT was on its way: a connection that is lost then leaves the
outcome unknown. `FAULTS` is looked up by the whole code, then by its class (the first two characters). Only where the server
refuses a new connection libpq gives no code, and its words are looked at; words that nobody knows count as passing.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import psycopg

from onward.errors import (
    FatalStoreError,
    OnwardError,
    OutcomeUnknown,
    StoreConflict,
    StoreImporting,
    StoreMoved,
    TransientStoreError,
)

Kind: TypeAlias = Literal["transient", "lost", "unknown", "conflict", "fatal"]
"""lost: transient, and the connection is of no more use; with a COMMIT on its way the outcome is unknown."""

REFUSED = "OW001"
"""Raised by the schema's own function `refuse`: some of the rows to be written are not as expected. Never leaves the store."""

MOVED, IMPORTING = "OW002", "OW003"
"""Raised by the triggers of a move (transfer.py); the error's detail is the other database's URL."""

LOCK_NOT_AVAILABLE = "55P03"

_POOLER = (
    "a pooler in transaction mode seems to be in between: add poll_only=1 to the database URL (…?poll_only=1), "
    "which needs no session"
)

FAULTS: dict[str, tuple[Kind, str]] = {
    # the connection
    "08": ("lost", "the connection failed"),
    "08007": ("unknown", "the connection failed during a commit"),
    "08P01": (
        "lost",
        "a pooler gives no server connection, or has dropped ours",
    ),  # PgBouncer's code for all its own errors
    "57P01": ("lost", "the server ended the connection"),
    "57P02": ("lost", "the server crashed"),
    "57P03": ("lost", "the server is starting up or shutting down"),
    "57P04": ("fatal", "the database was dropped"),
    "57P05": ("lost", "the server ended an idle connection"),
    "25P03": ("lost", "the server ended a transaction that stood idle"),
    "25P04": ("lost", "the server ended a transaction that took too long"),
    "25006": ("lost", "the server is read-only, a standby perhaps: another connection may find the new primary"),
    "25P02": ("lost", "the transaction had failed before"),
    "0A000": ("lost", "the server is a standby, or a table was changed under a prepared statement"),
    "26000": ("fatal", _POOLER),
    "42P05": ("fatal", _POOLER),
    # concurrency and resources
    "40": ("transient", "another transaction was in the way"),
    "40003": ("unknown", "the server does not know how the commit ended"),
    "40002": ("conflict", "a constraint refuses the data"),
    "55": ("transient", "an object is in use"),
    LOCK_NOT_AVAILABLE: ("transient", "a lock was not to be had in time"),
    "57014": ("transient", "the statement was cancelled or took too long"),
    "53": ("transient", "the server lacks resources"),
    "53100": ("fatal", "the server's disk is full: free some space"),
    "53300": ("lost", "the server has no connection left: raise max_connections, or use fewer workers or a pooler"),
    "58": ("transient", "an I/O error of the server; see its log"),
    # the data
    "22": ("conflict", "a value is not acceptable"),
    "23": ("conflict", "a constraint refuses the data"),
    "44": ("conflict", "a constraint refuses the data"),
    "54": ("conflict", "a value is larger than PostgreSQL allows"),
    "P0": ("conflict", "a trigger or function of the database refuses it"),
    "OW": ("conflict", "the schema refuses it"),
    # the place
    "28": ("fatal", "the server does not let us in: check the user and the password in the database URL"),
    "3D000": ("fatal", "there is no such database: check the URL, or create it with createdb"),
    "3F000": ("fatal", "there is no such schema; run: onward migrate"),
    "42": ("fatal", "the statement failed; was a table of Onward changed, or was it made by another version?"),
    "42P01": ("fatal", "a table is missing; run: onward migrate"),
    "42501": ("fatal", "the database user lacks a privilege; see onward migrate --roles"),
    "XX001": ("fatal", "the database is damaged: restore a backup"),
    "XX002": ("fatal", "an index of the database is damaged: REINDEX it"),
}


_REFUSALS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r'FATAL: +database ".*" does not exist'), "3D000"),
    (re.compile(r'FATAL: +role ".*" does not exist'), "28000"),
    (re.compile(r"FATAL: +password authentication failed"), "28P01"),
    (re.compile(r"FATAL: +no pg_hba\.conf entry"), "28000"),
    (re.compile(r"FATAL: +permission denied for database"), "42501"),
    (re.compile(r"fe_sendauth: no password supplied"), "28P01"),
    (re.compile(r"FATAL: +(sorry, )?too many (clients|connections)"), "53300"),
)


def _sqlstate(error: psycopg.Error) -> str | None:
    """The code, or the one that the words of a refused connection stand for."""
    if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
        text = str(error)
        return next((code for words, code in _REFUSALS if words.search(text)), None)
    return error.sqlstate


def look_up(sqlstate: str | None) -> tuple[Kind, str]:
    """What to make of a SQLSTATE; None: the connection broke, or never came about."""
    if sqlstate is None:
        return "lost", "the connection failed"
    return FAULTS.get(sqlstate) or FAULTS.get(sqlstate[:2]) or ("fatal", "the database cannot be used as it is")


def is_connection_lost(error: psycopg.Error) -> bool:
    """Whether the connection that raised it is of no more use."""
    return look_up(_sqlstate(error))[0] in ("lost", "unknown", "fatal")


def moving_error(error: Exception, *, database: str) -> StoreMoved | StoreImporting | None:
    """What a trigger of a move has raised, through whichever driver (psycopg, asyncpg)."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate not in (MOVED, IMPORTING):
        return None
    diagnosis = getattr(error, "diag", None)
    url: str | None = getattr(error, "detail", None) if diagnosis is None else diagnosis.message_detail
    return (StoreMoved if sqlstate == MOVED else StoreImporting)(database, url or "another database")


def classify(error: psycopg.Error, *, database: str, committing: bool = False) -> OnwardError:
    """The StoreError for an error of psycopg; raise it `from` the original. StoreMoved or StoreImporting from a trigger.

    `committing`: a COMMIT was sent and may have been carried out.
    """
    moving = moving_error(error, database=database)
    if moving is not None:
        return moving
    sqlstate = _sqlstate(error)
    kind, words = look_up(sqlstate)
    if sqlstate is None and isinstance(error, (psycopg.DataError, psycopg.ProgrammingError)):
        kind, words = "conflict", "the driver refuses a value"  # for instance a NUL character
    text = " ".join(str(error).split()) or type(error).__name__
    detail = f"{database}: {f'{sqlstate}: ' if sqlstate else ''}{text}"
    if kind == "unknown" or (kind == "lost" and committing and not _came_before_commit(sqlstate)):
        return OutcomeUnknown(f"{detail}; {words}; look before writing again")
    if kind in ("transient", "lost"):
        return TransientStoreError(f"{detail}; {words}; nothing was written, try again")
    if kind == "conflict":
        return StoreConflict(f"{detail}; {words}; nothing was written")
    return FatalStoreError(f"{detail}; {words}")


def _came_before_commit(sqlstate: str | None) -> bool:
    """Errors of a statement, after which the COMMIT behind it was skipped, though the connection is given up."""
    return sqlstate in ("25006", "25P02", "0A000", "53300")
