"""A client that is killed around the commit of its `start`: started = exists, whatever it lived to see."""

from __future__ import annotations

import signal

import pytest

from onward.client import Client
from onward.errors import WorkflowIdConflict
from tests.faults import flows
from tests.faults.scenes import Scene


@pytest.mark.parametrize(
    ("failpoint", "exists"),
    [
        ("flush:before", False),
        ("write:before-commit", False),
        ("write:after-commit", True),
        ("flush:after", True),
    ],
)
def test_a_start_is_there_exactly_if_its_commit_was(scene: Scene, failpoint: str, exists: bool) -> None:
    """A client killed before the commit leaves nothing, one killed after it leaves the workflow, never half of it; the same
    start again gives the one workflow, which then runs once."""
    scene.start()
    client = scene.spawn(start="order-1", failpoint=failpoint)
    assert client.wait() == -signal.SIGKILL
    assert scene.rows("SELECT id FROM onward_workflows") == (["order-1"] if exists else [])
    with Client(scene.url) as again:
        handle = again.start(flows.trial.using(id="order-1"), 4)
        assert (handle.id, handle.created) == ("order-1", not exists)
        with pytest.raises(WorkflowIdConflict):
            again.start(flows.trial.using(id="order-1"), 5)
        again.signal("order-1", flows.go_on, "yes")
        with scene.worker():
            assert handle.result(timeout=30).booked == 5
    assert scene.rows("SELECT amount FROM bookings") == [4]
    scene.check()


def test_a_batch_of_starts_is_committed_whole_or_not_at_all(scene: Scene) -> None:
    """A client killed between the batches of a large `start_many` leaves whole batches."""
    scene.start()
    client = scene.spawn(start="many", failpoint="flush:before@2")
    assert client.wait() == -signal.SIGKILL
    count = len(scene.rows("SELECT id FROM onward_workflows"))
    assert 0 < count < 5000
    client = scene.spawn(start="many")
    assert client.wait() == 0
    assert len(scene.rows("SELECT id FROM onward_workflows")) == 5000
