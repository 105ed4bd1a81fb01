"""What the answer of the database means for starts."""

from __future__ import annotations

from onward._store.operations import APPLIED, BUSY, LEASE_LOST, Outcome, StartOp
from onward._store.postgres.batch import Start
from onward._store.postgres.starts import note_starts
from tests.conformance.support import new


def test_a_start_whose_id_was_pruned_between_insert_and_look_is_written_again() -> None:
    outcomes: list[Outcome] = [APPLIED]
    note_starts(b"[]", [Start(0, StartOp(new("x")))], outcomes)
    assert outcomes == [BUSY]


def test_a_start_of_an_execution_that_was_over_without_it_is_lost() -> None:
    outcomes: list[Outcome] = [APPLIED]
    note_starts(b"[]", [Start(0, StartOp(new("x")), look_only=True)], outcomes)
    assert outcomes == [LEASE_LOST]
