"""Which kind of error each SQLSTATE is, and that nothing is taken for known that is not."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from onward._store.postgres.faults import FAULTS, classify, is_connection_lost
from onward.errors import FatalStoreError, OutcomeUnknown, StoreConflict, StoreError, TransientStoreError


def error_of(sqlstate: str) -> psycopg.Error:
    made: psycopg.Error = errors.lookup(sqlstate)("the server's words")
    return made


TABLE: list[tuple[str, type[StoreError], type[StoreError]]] = [
    # SQLSTATE, what it is while nothing is being committed, what it is with a COMMIT on its way
    ("08000", TransientStoreError, OutcomeUnknown),
    ("08001", TransientStoreError, OutcomeUnknown),
    ("08003", TransientStoreError, OutcomeUnknown),
    ("08006", TransientStoreError, OutcomeUnknown),
    ("08007", OutcomeUnknown, OutcomeUnknown),
    ("08P01", TransientStoreError, OutcomeUnknown),
    ("0A000", TransientStoreError, TransientStoreError),
    ("22003", StoreConflict, StoreConflict),
    ("22P02", StoreConflict, StoreConflict),
    ("22P05", StoreConflict, StoreConflict),
    ("23502", StoreConflict, StoreConflict),
    ("23505", StoreConflict, StoreConflict),
    ("23514", StoreConflict, StoreConflict),
    ("25006", TransientStoreError, TransientStoreError),
    ("25P02", TransientStoreError, TransientStoreError),
    ("25P03", TransientStoreError, OutcomeUnknown),
    ("26000", FatalStoreError, FatalStoreError),
    ("28000", FatalStoreError, FatalStoreError),
    ("28P01", FatalStoreError, FatalStoreError),
    ("3D000", FatalStoreError, FatalStoreError),
    ("3F000", FatalStoreError, FatalStoreError),
    ("40001", TransientStoreError, TransientStoreError),
    ("40002", StoreConflict, StoreConflict),
    ("40003", OutcomeUnknown, OutcomeUnknown),
    ("40P01", TransientStoreError, TransientStoreError),
    ("42501", FatalStoreError, FatalStoreError),
    ("42601", FatalStoreError, FatalStoreError),
    ("42703", FatalStoreError, FatalStoreError),
    ("42P01", FatalStoreError, FatalStoreError),
    ("42P05", FatalStoreError, FatalStoreError),
    ("53100", FatalStoreError, FatalStoreError),
    ("53200", TransientStoreError, TransientStoreError),
    ("53300", TransientStoreError, TransientStoreError),
    ("54000", StoreConflict, StoreConflict),
    ("55006", TransientStoreError, TransientStoreError),
    ("55P03", TransientStoreError, TransientStoreError),
    ("57014", TransientStoreError, TransientStoreError),
    ("57P01", TransientStoreError, OutcomeUnknown),
    ("57P02", TransientStoreError, OutcomeUnknown),
    ("57P03", TransientStoreError, OutcomeUnknown),
    ("57P04", FatalStoreError, FatalStoreError),
    ("57P05", TransientStoreError, OutcomeUnknown),
    ("58030", TransientStoreError, TransientStoreError),
    ("P0001", StoreConflict, StoreConflict),
    ("XX000", FatalStoreError, FatalStoreError),
    ("XX001", FatalStoreError, FatalStoreError),
]


@pytest.mark.parametrize(("sqlstate", "reading", "committing"), TABLE)
def test_each_sqlstate_has_its_kind(sqlstate: str, reading: type[StoreError], committing: type[StoreError]) -> None:
    error = error_of(sqlstate)
    assert type(classify(error, database="db")) is reading
    assert type(classify(error, database="db", committing=True)) is committing


def test_every_line_of_the_table_is_tested() -> None:
    tested = {sqlstate for sqlstate, _, _ in TABLE}
    assert {key for key in FAULTS if key not in tested and not any(one.startswith(key) for one in tested)} <= {
        "25P04",
        "44",
        "OW",
        "XX002",
    }


def test_a_connection_that_broke_without_a_word_leaves_a_commit_in_doubt_and_nothing_else() -> None:
    error = psycopg.OperationalError("server closed the connection unexpectedly")
    assert type(classify(error, database="db")) is TransientStoreError
    assert type(classify(error, database="db", committing=True)) is OutcomeUnknown


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "25006", "08006", "0A000", "26000", "53300"])
def test_a_connection_that_is_of_no_more_use_is_given_up(sqlstate: str) -> None:
    assert is_connection_lost(error_of(sqlstate))


@pytest.mark.parametrize("sqlstate", ["23505", "40001", "40P01", "55P03", "57014", "22P02"])
def test_a_connection_survives_the_failure_of_a_statement(sqlstate: str) -> None:
    assert not is_connection_lost(error_of(sqlstate))


def test_the_message_says_what_happened_and_what_to_do() -> None:
    text = str(classify(error_of("26000"), database="postgresql://host/app"))
    assert "26000" in text
    assert "postgresql://host/app" in text
    assert "poll_only=1" in text


def test_a_value_that_the_driver_refuses_is_a_conflict() -> None:
    assert type(classify(psycopg.DataError("a NUL character"), database="db")) is StoreConflict


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ('connection failed: FATAL:  database "x" does not exist', FatalStoreError),
        ('connection failed: FATAL:  role "x" does not exist', FatalStoreError),
        ('connection failed: FATAL:  password authentication failed for user "x"', FatalStoreError),
        ('connection failed: FATAL:  no pg_hba.conf entry for host "::1", user "x"', FatalStoreError),
        ("connection failed: FATAL:  sorry, too many clients already", TransientStoreError),
        ("connection failed: FATAL:  the database system is starting up", TransientStoreError),
        ("connection failed: FATAL:  in a language that nobody here knows", TransientStoreError),
        ("failed to resolve host 'x': Name or service not known", TransientStoreError),
        ("connection failed: Connection refused", TransientStoreError),
    ],
)
def test_where_no_code_comes_with_a_refused_connection_its_words_decide(words: str, kind: type[StoreError]) -> None:
    assert type(classify(psycopg.OperationalError(words), database="db")) is kind
