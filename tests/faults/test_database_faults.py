"""A database that says no for a while, under a living worker: one line in the log, nothing lost, nothing twice, on it goes."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing

import pytest

from onward.client import Client
from onward.definitions import Workflow
from onward.errors import FatalStoreError
from tests.faults import flows
from tests.faults.databases import SqliteFile
from tests.faults.processes import FaultProcess, until
from tests.faults.scenes import Scene


def start_some(scene: Scene, first: Workflow[[str], int] = flows.gated) -> None:
    """One workflow at a gate, ten that are yet to come."""
    gate = str(scene.directory / "gate")
    scene.start(
        first.using(id="at-gate").bind(gate),
        *(flows.three.using(id=f"later-{number}", delay=0.5).bind(number) for number in range(10)),
    )


def check_all_done(scene: Scene) -> None:
    """Every workflow completed, and every body ran once: a database that says no costs no step."""
    scene.until_final(40)
    assert scene.statuses() == {"completed": 11}
    assert Counter(Counter((line.workflow, line.key) for line in scene.bodies()).values()) == {1: 32}
    scene.check()


def sqlite(scene: Scene) -> SqliteFile:
    """The database of a scene that is on SQLite."""
    assert isinstance(scene.database, SqliteFile)
    return scene.database


def complaints(worker: FaultProcess) -> Counter[str]:
    """How many warnings each part of the worker has logged."""
    return Counter(re.findall(r"WARNING (onward\.\w+):", worker.log))


def test_a_file_locked_by_a_stranger_delays_and_nothing_else(scene: Scene) -> None:
    """Another process holds the write lock for longer than the worker waits for it: each part says so once."""
    start_some(scene)
    with scene.worker(twists={"impatient": "0.2"}) as worker:
        until(lambda: scene.bodies_of("at-gate"), "the body at the gate")
        with closing(sqlite(scene).connect()) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            (scene.directory / "gate").touch()
            until(lambda: complaints(worker).keys() >= {"onward.committer", "onward.lease"}, "complaints")
            stranger.execute("ROLLBACK")
        check_all_done(scene)
        assert set(complaints(worker).values()) == {1}, worker.log
        assert "the database takes writes again" in worker.log


def test_a_worker_that_stops_while_the_database_takes_no_writes_ends_all_the_same(scene: Scene) -> None:
    """It waits for the grace and a little longer, then leaves its rows to whoever comes, unharmed."""
    start_some(scene)
    stopping = scene.spawn(twists={"impatient": "0.2"}, grace=0.1)
    until(lambda: scene.bodies_of("at-gate"), "the body at the gate")
    with closing(sqlite(scene).connect()) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        stopping.stop()
        stranger.execute("ROLLBACK")
    assert "could not be given back; others will take them over" in stopping.log
    (scene.directory / "gate").touch()
    with scene.worker():
        scene.until_final()
    assert scene.statuses() == {"completed": 11}
    scene.check()


def test_a_full_disk_stops_the_worker_until_there_is_room(scene: Scene) -> None:
    """Nothing is written half, the error names the cure, and the work goes on by itself once there is room."""
    start_some(scene, flows.bulky)
    room = scene.directory / "room"
    with scene.worker(twists={"full-disk": str(room)}) as worker:
        until(lambda: scene.bodies_of("at-gate"), "the body at the gate")
        (scene.directory / "gate").touch()
        until(lambda: "the disk is full: free some space" in worker.log, "a complaint")
        room.touch()
        check_all_done(scene)
        assert set(complaints(worker).values()) == {1}, worker.log


def test_a_damaged_file_is_reported_and_the_worker_goes_on_when_it_is_mended(scene: Scene) -> None:
    """The schema of a table points nowhere for a while: the worker and a client name the damage and what to do."""
    start_some(scene)
    with scene.worker() as worker:
        until(lambda: scene.bodies_of("at-gate"), "the body at the gate")
        [root] = scene.rows("SELECT rootpage FROM sqlite_schema WHERE name = 'onward_workflows'")
        _point_table_to(scene, 99_999)
        (scene.directory / "gate").touch()
        until(lambda: "onward.committer" in complaints(worker), "a complaint")
        assert "the file is damaged: restore a backup" in worker.log
        with Client(scene.url) as client, pytest.raises(FatalStoreError, match="damaged"):
            client.start(flows.three, 1)
        _point_table_to(scene, root)
        check_all_done(scene)
        assert set(complaints(worker).values()) == {1}, worker.log


def test_a_worker_on_a_file_that_is_no_database_ends_with_a_clear_error(scene: Scene) -> None:
    """It does not start, does not touch the file, and says what is wrong."""
    sqlite(scene).path.write_bytes(b"This is a letter to a friend. " * 500)
    worker = scene.spawn()
    assert worker.wait() == 70
    assert "the file is not an SQLite database: check the URL" in worker.log
    assert sqlite(scene).path.read_bytes() == b"This is a letter to a friend. " * 500


def test_rows_whose_claim_was_not_answered_are_released_by_their_own_worker(scene: Scene) -> None:
    """A claim commits and its reply is lost: the worker finds rows that bear its id and that it does not hold, gives them
    back and takes them again; nothing counts as a crash."""
    scene.start(*(flows.three.using(id=f"w-{number}").bind(number) for number in range(10)))
    with scene.worker(twists={"lose-claim-reply": ""}) as worker:
        scene.until_final()
        assert worker.log.count("was not really held; released") == 10
    assert Counter(Counter((line.workflow, line.key) for line in scene.bodies()).values()) == {1: 30}
    assert scene.rows("SELECT DISTINCT epoch, crashes FROM onward_workflows") == [(3, 0)]
    scene.check()


def _point_table_to(scene: Scene, page: int) -> None:
    """Damage (or mend) the file so that every connection of every process notices."""
    with closing(sqlite(scene).connect()) as conn:
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("UPDATE sqlite_schema SET rootpage = ? WHERE name = 'onward_workflows'", (page,))
        [version] = conn.execute("PRAGMA schema_version").fetchone()
        conn.execute(f"PRAGMA schema_version = {version + 1}")
