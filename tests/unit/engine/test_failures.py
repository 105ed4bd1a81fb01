"""Errors become records and come back: the same live and on replay, whatever users' classes do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Self

import msgspec
import pytest

from onward import Fail, StepFailed, StepTimedOut, WorkflowCancelled, WorkflowFailed, WorkflowTimedOut
from onward._engine.failures import (
    MAX_TEXT,
    StepTimeout,
    describe,
    note,
    read,
    rebuild_step,
    rebuild_workflow,
    short,
)
from onward._store.records import ErrorRecord


class Declined(Exception):
    """An ordinary class."""


class ReallyDeclined(Declined):
    """A subclass of a listed one."""


class Odd(Exception):
    """Its constructor takes other arguments than `args` has."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Picky(Exception):
    """Its `__new__` refuses what it does not know."""

    def __new__(cls, code: int) -> Self:
        return super().__new__(cls, code)

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.doubled = code * 2


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raised(make: Callable[[], BaseException]) -> BaseException:
    """The error with a traceback."""
    try:
        raise make()
    except BaseException as error:
        return error


def test_an_unlisted_error_comes_back_as_step_failed_with_its_words() -> None:
    """Type name, message and the text of its traceback, and the step's key."""
    record = describe(raised(lambda: ValueError("bad", 3)))
    error = rebuild_step(record, "charge#2")
    assert type(error) is StepFailed
    assert (error.key, error.type_name, error.message) == ("charge#2", "ValueError", "('bad', 3)")
    assert "test_failures.py" in error.traceback
    assert "ValueError: ('bad', 3)" in error.traceback


def test_a_listed_error_comes_back_as_itself() -> None:
    """With its arguments."""
    record = describe(raised(lambda: Declined("card", 42)), (KeyError, Declined))
    error = rebuild_step(record, "k", (KeyError, Declined))
    assert type(error) is Declined
    assert error.args == ("card", 42)


def test_a_subclass_of_a_listed_class_comes_back_as_the_listed_one() -> None:
    """Classes are never found by name: only those in the list are ever built."""
    record = describe(raised(lambda: ReallyDeclined("card")), (Declined,))
    assert read(record).type == "ReallyDeclined"
    error = rebuild_step(record, "k", (Declined,))
    assert type(error) is Declined
    assert error.args == ("card",)


def test_only_the_present_list_counts() -> None:
    """An error recorded when its class was listed is StepFailed where it is listed no more, and the other way round."""
    listed = describe(raised(lambda: Declined("card")), (Declined,))
    unlisted = describe(raised(lambda: Declined("card")))
    assert type(rebuild_step(listed, "k", (KeyError,))) is StepFailed
    assert type(rebuild_step(unlisted, "k", (Declined,))) is StepFailed


def test_a_record_that_names_a_class_outside_the_list_builds_nothing() -> None:
    """Not even a builtin."""
    record = msgspec.json.encode(ErrorRecord("SystemExit", "0", listed="SystemExit", args=[0])).decode()
    assert type(rebuild_step(record, "k", (Declined,))) is StepFailed
    assert type(rebuild_workflow(record, "w", (Declined,))) is WorkflowFailed


@pytest.mark.parametrize("make", [lambda: Odd(code=3), lambda: Picky(3)])
def test_classes_with_constructors_of_their_own_come_back(make: Callable[[], Exception]) -> None:
    """By their constructor where it takes the arguments, else without it."""
    original = make()
    error = rebuild_step(describe(raised(lambda: original), (type(original),)), "k", (type(original),))
    assert type(error) is type(original)
    assert error.args == original.args
    assert str(error) == str(original)


@pytest.mark.parametrize("argument", [object(), {1, 2}, (1, 2), float("nan"), "\ud800", b"x", {1: 2}])
def test_arguments_that_json_would_change_are_replaced_by_the_message(argument: Any) -> None:
    """A listed class comes back with its message rather than with other arguments."""
    original = Declined(argument)
    record = describe(raised(lambda: original), (Declined,))
    assert read(record).args is None
    error = rebuild_step(record, "k", (Declined,))
    assert type(error) is Declined
    assert error.args == (str(original).encode("utf-8", "replace").decode(),)


def test_lone_surrogates_do_not_keep_an_error_from_being_recorded() -> None:
    """They are shown as question marks."""
    record = describe(raised(lambda: ValueError("a\ud800b")))
    assert read(record).message == "a?b"
    assert json.loads(record.encode("utf-8"))["type"] == "ValueError"


def test_an_error_whose_text_cannot_be_made_is_recorded_all_the_same() -> None:
    """The record says so."""
    assert read(describe(raised(Mute))).message == "<Mute whose text cannot be made: RuntimeError>"


def test_long_texts_are_cut() -> None:
    """The beginning of the message, the end of the traceback, where the error is."""
    record = read(describe(raised(lambda: ValueError("x" * 3 * MAX_TEXT + "end"))))
    assert record.message == "x" * MAX_TEXT
    assert len(record.traceback) == MAX_TEXT
    assert record.traceback.rstrip().endswith("xend")


def test_fail_comes_back_as_fail() -> None:
    """A step that says so ends the workflow for certain."""
    error = rebuild_step(describe(raised(lambda: Fail("never"))), "k")
    assert type(error) is Fail
    assert str(error) == "never"


def test_a_steps_time_limit_comes_back_as_timed_out() -> None:
    """StepTimedOut is a TimeoutError, too."""
    error = rebuild_step(describe(raised(lambda: StepTimeout("ran longer than 1 s"))), "k")
    assert type(error) is StepTimedOut
    assert isinstance(error, TimeoutError)
    assert "ran longer than 1 s" in str(error)


@pytest.mark.parametrize(
    ("record", "cls"),
    [
        (note("Cancelled", "cancelled", status="cancelled"), WorkflowCancelled),
        (note("WorkflowTimedOut", "too late", status="timed_out"), WorkflowTimedOut),
        (note("ValueError", "no"), WorkflowFailed),
    ],
)
def test_a_workflows_end_comes_back_by_its_status(record: str, cls: type[Exception]) -> None:
    """Failed, cancelled or timed out, with the workflow's id."""
    error = rebuild_workflow(record, "w-1")
    assert type(error) is cls
    assert isinstance(error, WorkflowFailed)
    assert "w-1" in str(error)


def test_a_workflows_listed_error_comes_back_as_itself() -> None:
    """As with steps."""
    record = describe(raised(lambda: Declined("card")), (Declined,), status="failed")
    assert type(rebuild_workflow(record, "w", (Declined,))) is Declined


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"type": 3, "message": ""}', "null", '"x"'])
def test_a_record_spoiled_by_hand_is_shown_and_harms_nobody(text: str) -> None:
    """It becomes an error that shows the text."""
    error = rebuild_step(text, "k")
    assert type(error) is StepFailed
    assert (error.type_name, error.message) == ("Unreadable", text)
    assert type(rebuild_workflow(text, "w")) is WorkflowFailed


def test_fields_of_a_later_version_are_ignored() -> None:
    """An old worker reads what a new one wrote."""
    assert read('{"type": "E", "message": "m", "colour": "red"}') == ErrorRecord("E", "m")


def test_an_error_in_a_few_words() -> None:
    """Class and message, or the class alone."""
    assert short(note("ValueError", "no")) == "ValueError: no"
    assert short(note("ValueError", "")) == "ValueError"
    assert len(short(note("ValueError", "x" * 5000))) < 400


def test_the_seq_is_kept_for_retry() -> None:
    """An operator's retry truncates before it."""
    assert read(describe(ValueError(), seq=7)).seq == 7
