"""The one place that decides which of the four kinds of StoreError an error of PostgreSQL is.

The decision rests on the SQLSTATE alone (never on the text), and on whether a COMMIT was on its way: a connection that is lost
then leaves the outcome unknown. `FAULTS` is looked up by the whole code, then by its class (the first two characters).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import psycopg

from onward.errors import FatalStoreError, OutcomeUnknown, StoreConflict, StoreError, TransientStoreError

Kind: TypeAlias = Literal["transient", "lost", "unknown", "conflict", "fatal"]
"""lost: transient, and the connection is of no more use; with a COMMIT on its way the outcome is unknown."""

REFUSED = "OW001"
"""Raised by the schema's own function `refuse`: some of the rows to be written are not as expected. Never leaves the store."""

LOCK_NOT_AVAILABLE = "55P03"

_POOLER = (
    "a pooler in transaction mode seems to be in between: add poll_only=1 to the database URL (…?poll_only=1), "
    "which needs no session"
)

FAULTS: dict[str, tuple[Kind, str]] = {
    # the connection
    "08": ("lost", "the connection failed"),
    "08007": ("unknown", "the connection failed during a commit"),
    "08P01": ("fatal", "the server or a pooler does not speak the protocol as expected"),
    "57P01": ("lost", "the server ended the connection"),
    "57P02": ("lost", "the server crashed"),
    "57P03": ("lost", "the server is starting up or shutting down"),
    "57P04": ("fatal", "the database was dropped"),
    "57P05": ("lost", "the server ended an idle connection"),
    "25P03": ("lost", "the server ended a transaction that stood idle"),
    "25P04": ("lost", "the server ended a transaction that took too long"),
    "25006": ("lost", "the server is read-only, a standby perhaps: another connection may find the new primary"),
    "25P02": ("lost", "the transaction had failed before"),
    "0A000": ("lost", "a table was changed under a prepared statement"),
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


def look_up(sqlstate: str | None) -> tuple[Kind, str]:
    """What to make of a SQLSTATE; None: the connection broke, or never came about."""
    if sqlstate is None:
        return "lost", "the connection failed"
    return FAULTS.get(sqlstate) or FAULTS.get(sqlstate[:2]) or ("fatal", "the database cannot be used as it is")


def is_connection_lost(error: psycopg.Error) -> bool:
    """Whether the connection that raised it is of no more use."""
    return look_up(error.sqlstate)[0] in ("lost", "unknown", "fatal")


def classify(error: psycopg.Error, *, database: str, committing: bool = False) -> StoreError:
    """The StoreError for an error of psycopg; raise it `from` the original.

    `committing`: a COMMIT was sent and may have been carried out.
    """
    kind, words = look_up(error.sqlstate)
    if error.sqlstate is None and isinstance(error, (psycopg.DataError, psycopg.ProgrammingError)):
        kind, words = "conflict", "the driver refuses a value"  # for instance a NUL character
    text = " ".join(str(error).split()) or type(error).__name__
    detail = f"{database}: {f'{error.sqlstate}: ' if error.sqlstate else ''}{text}"
    if kind == "unknown" or (kind == "lost" and committing and not _came_before_commit(error.sqlstate)):
        return OutcomeUnknown(f"{detail}; {words}; look before writing again")
    if kind in ("transient", "lost"):
        return TransientStoreError(f"{detail}; {words}; nothing was written, try again")
    if kind == "conflict":
        return StoreConflict(f"{detail}; {words}; nothing was written")
    return FatalStoreError(f"{detail}; {words}")


def _came_before_commit(sqlstate: str | None) -> bool:
    """Errors of a statement, after which the COMMIT behind it was skipped, though the connection is given up."""
    return sqlstate in ("25006", "25P02", "0A000", "53300")
