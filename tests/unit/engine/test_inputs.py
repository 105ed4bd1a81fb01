"""What comes from outside is merged by database time: mail, timers, and the workflow's own deadline."""

from __future__ import annotations

from typing import cast

import pytest

from onward._engine.inputs import Input, Inputs
from onward._engine.replay.commands import Waiting
from onward._engine.replay.matching import Execution
from onward._store.records import Entry, Inbox, Loaded, Mail

NOW = 1_000


class FakeCore:
    """What `Inputs` asks of an execution: timers by deadline, and the names it waits for."""

    def __init__(self, *timers: tuple[str, int], signals: tuple[str, ...] = (), children: tuple[str, ...] = ()) -> None:
        self.timers = list(timers)
        self.signals = list(signals)
        self.children = list(children)

    @property
    def has_timers(self) -> bool:
        return bool(self.timers)

    def next_timer(self) -> Waiting | None:
        if not self.timers:
            return None
        key, deadline = min(self.timers, key=lambda timer: timer[1])
        return Waiting(key, "timer", "", deadline)

    def wants_signal(self, name: str) -> str | None:
        return f"signal:{name}" if name in self.signals else None

    def wants_child(self, child_id: str) -> str | None:
        return f"child:{child_id}" if child_id in self.children else None

    def deliver(self, item: Input) -> None:
        self.timers = [timer for timer in self.timers if timer[0] != item.key]


def signal(mail_id: int, at: int, name: str = "s") -> Mail:
    return Mail(mail_id, "signal", at, name, str(mail_id))


def inputs(*mail: Mail, deadline: int | None = None, signals: int = 0, entries: tuple[Entry, ...] = ()) -> Inputs:
    made = Inputs(signals, deadline)
    made.load(Loaded("w", signals, list(entries), list(mail), [], len(entries)))
    return made


def drain(of: Inputs, core: FakeCore, now: int = NOW) -> list[str]:
    """The keys of all inputs at hand (with the mail's id), in the order of their delivery."""
    found = []
    while (item := of.pop(cast("Execution", core), lambda: now)) is not None:
        core.deliver(item)
        found.append(item.key + "".join(f"#{mail_id}" for mail_id in item.consumed))
    return found


def test_inputs_found_together_are_delivered_by_database_time() -> None:
    """A worker was down: a signal at 50, a timer at 100, a child's end at 150, a cancel at 200, another timer at 250."""
    made = inputs(signal(1, 50), Mail(2, "child", 150, "c"), Mail(3, "cancel", 200))
    core = FakeCore(("late", 250), ("early", 100), signals=("s",), children=("c",))
    assert drain(made, core) == ["signal:s#1", "early", "child:c#2", "cancel#3", "late"]


def test_mail_comes_before_a_timer_of_the_same_instant() -> None:
    """The answer that came in the last microsecond counts."""
    assert drain(inputs(signal(1, 100)), FakeCore(("timeout", 100), signals=("s",))) == ["signal:s#1", "timeout"]
    assert drain(inputs(signal(1, 101)), FakeCore(("timeout", 100), signals=("s",))) == ["timeout", "signal:s#1"]


def test_a_timer_comes_before_a_deadline_of_the_same_instant() -> None:
    """The deadline has the last word only where it is the earlier one."""
    assert drain(inputs(deadline=100), FakeCore(("sleep", 100))) == ["sleep", "timeout"]
    assert drain(inputs(deadline=99), FakeCore(("sleep", 100))) == ["timeout", "sleep"]


def test_mail_comes_before_the_deadline_of_the_same_instant() -> None:
    """As with timers."""
    assert drain(inputs(signal(1, 100), deadline=100), FakeCore(signals=("s",))) == ["signal:s#1", "timeout"]
    assert drain(inputs(signal(1, 101), deadline=100), FakeCore(signals=("s",))) == ["timeout", "signal:s#1"]


@pytest.mark.parametrize(("now", "found"), [(99, []), (100, ["sleep"])])
def test_nothing_fires_early(now: int, found: list[str]) -> None:
    """Timers fire by the database's clock, never before it."""
    assert drain(inputs(), FakeCore(("sleep", 100)), now) == found
    assert drain(inputs(deadline=100), FakeCore(), now) == ["timeout"] * len(found)


def test_the_deadline_passes_once() -> None:
    """Its entry is delivered once, and neither again after a reload of a history that has it."""
    made = inputs(deadline=100)
    assert drain(made, FakeCore()) == ["timeout"]
    assert drain(made, FakeCore()) == []
    assert drain(inputs(deadline=100, entries=(Entry(1, "timeout", "timeout", 100),)), FakeCore()) == []


def test_mail_that_nothing_waits_for_stays_in_order_until_something_does() -> None:
    """It neither blocks other mail nor is lost; of one name the oldest comes first."""
    made = inputs(signal(1, 10, "a"), signal(2, 20, "b"), signal(3, 30, "a"))
    core = FakeCore(signals=("b",))
    assert drain(made, core) == ["signal:b#2"]
    core.signals = ["a"]
    assert drain(made, core) == ["signal:a#1", "signal:a#3"]


def test_unwanted_mail_does_not_hold_back_a_timer() -> None:
    """Only mail that would be delivered now competes with it."""
    assert drain(inputs(signal(1, 10, "other")), FakeCore(("sleep", 100))) == ["sleep"]


def test_a_cancel_is_wanted_by_every_workflow() -> None:
    """Whatever it waits for."""
    assert drain(inputs(Mail(1, "cancel", 10)), FakeCore()) == ["cancel#1"]


def test_an_input_carries_what_the_mail_says() -> None:
    """Payload or error, and the mail that the entry takes out of the mailbox."""
    made = inputs(Mail(7, "signal", 1, "s", '"hello"'), Mail(8, "child", 2, "c", None, '{"type":"E","message":""}'))
    core = cast("Execution", FakeCore(signals=("s",), children=("c",)))
    assert made.pop(core, lambda: NOW) == Input("signal:s", "signal", '"hello"', None, (7,))
    assert made.pop(core, lambda: NOW) == Input("child:c", "child", None, '{"type":"E","message":""}', (8,))
    assert made.pop(core, lambda: NOW) is None


def test_mail_read_twice_is_taken_once() -> None:
    """Two looks at the mailbox overlap; a message is delivered once, and `signals` never falls."""
    made = inputs(signal(1, 10), signals=1)
    made.take(Inbox("w", 1, 3, [signal(1, 10), signal(2, 20)]))
    made.take(Inbox("w", 1, 2, [signal(1, 10), signal(2, 20)]))
    assert (made.seen, made.last_mail) == (3, 2)
    assert drain(made, FakeCore(signals=("s",))) == ["signal:s#1", "signal:s#2"]


def test_the_counter_is_that_of_the_load_not_of_the_claim() -> None:
    """Parking compares with what was really read."""
    made = Inputs(1, None)
    made.load(Loaded("w", 4, [], [], [], 0))
    assert made.seen == 4


@pytest.mark.parametrize(
    ("timers", "deadline", "expected"),
    [
        ((), None, None),
        ((("t", 300),), None, 300),
        ((), 200, 200),
        ((("t", 300),), 200, 200),
        ((("t", 100),), 200, 100),
    ],
)
def test_the_next_event_is_the_earlier_of_timer_and_deadline(
    timers: tuple[tuple[str, int], ...], deadline: int | None, expected: int | None
) -> None:
    """So that one timer of the worker's loop is enough."""
    made, core = inputs(deadline=deadline), cast("Execution", FakeCore(*timers))
    assert made.next_event_at(core) == expected
    assert made.has_timed(core) == (expected is not None)
