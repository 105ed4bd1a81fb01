"""The network fails exactly around one commit: its reply is lost, the request is lost, or the request arrives when nobody waits.

Whatever the statement was, what follows is the undisturbed run: nothing lost, and no body more than there would have been.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import pytest

from onward._store.postgres.serverclock import ServerClock
from onward._store.postgres.statements import compile_statements
from onward.client import Client
from tests.faults import flows
from tests.faults.databases import IS_LONG
from tests.faults.kills import ID
from tests.faults.processes import until
from tests.postgres.loads import PostgresScene, bodies, check_log, start_trial
from tests.postgres.proxy import Loss, Proxy, proxy_to

LEASE_S = 4.0
TEXTS = {name: one.wire.decode() for name, one in compile_statements("onward", ServerClock()).items()}
TEXTS["step's commit"] = "^COMMIT$"
WORKERS_STATEMENTS = {
    "claim": ("claim_due", 1),  # the first one asks for rows that must run alone
    "first entry": ("record_entry", 0),
    "later entry": ("record_entry", 1),
    "entry with more": ("insert_entries", 1),
    "park": ("park_rows", 0),
    "later park": ("park_rows", 2),
    "retry": ("upsert_retries", 0),
    "transactional step": ("step's commit", 0),
    "failed attempt": ("fail_attempts", 0),
    "child's start": ("insert_workflows", 0),
    "finish": ("finish_rows", 0),
    "later finish": ("finish_rows", 1),
    "history": ("load_histories", 0),
    "registration": ("register_worker", 0),
    "renewal": ("renew_lease", 1),
    "look for the dead": ("look_for_dead", 0),  # the later ones come with the renewals
}
LOSSES: tuple[Loss, ...] = ("reply", "request", "late")
EVERY = [(name, loss) for name in WORKERS_STATEMENTS for loss in LOSSES]
SOME = [
    *((name, "reply") for name in WORKERS_STATEMENTS), ("claim", "late"), ("later entry", "late"), ("later entry", "request"),
    ("park", "late"), ("transactional step", "request"), ("later finish", "late"), ("renewal", "request"),
]  # fmt: skip


@pytest.fixture
def proxy(scene: PostgresScene) -> Iterator[Proxy]:
    """The scene's database through a proxy."""
    with proxy_to(scene.url) as made:
        yield made


@pytest.mark.parametrize(("name", "loss"), EVERY if IS_LONG else SOME)
def test_a_worker_that_loses_a_round_trip_goes_on_as_if_nothing_had_been(
    scene: PostgresScene, undisturbed: PostgresScene, proxy: Proxy, name: str, loss: Loss
) -> None:
    """It reads back what became of an unknown commit; a registration whose fate is unknown is for whoever started the worker."""
    statement, after = WORKERS_STATEMENTS[name]
    start_trial(scene)
    proxy.lose(loss, TEXTS[statement], after=after)
    worker = scene.spawn(url=proxy.url, lease=LEASE_S)
    until(lambda: proxy.losses or worker.ended is not None, f"the loss at {name}\n{scene.describe()}")
    if name == "registration":
        assert worker.wait() == 70
        worker = scene.spawn(url=proxy.url, lease=LEASE_S)
    scene.until_final()
    if loss != "request":  # what comes so late finds everything over, perhaps
        until(lambda: proxy.served_count == 1, "that the lost request has been served")
    assert len(proxy.losses) == 1
    assert scene.outcome() == undisturbed.outcome()
    found, wanted = bodies(scene), bodies(undisturbed)
    if name == "transactional step":  # rolled back as a whole, its body may run again
        assert found - wanted <= Counter({(ID, "book", 1): 1})
        found -= found - wanted
    assert found == wanted
    worker.stop()
    check_log(worker)
    scene.check()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_client_that_loses_the_reply_to_a_start_has_started_once(
    scene: PostgresScene, proxy: Proxy, loss: Loss
) -> None:
    """The handle says that this call created the workflow, whichever of its tries did."""
    scene.start()
    proxy.lose(loss, TEXTS["insert_workflows"])
    with Client(proxy.url) as client:
        handle = client.start(flows.three.using(id="one"), 1)
        assert len(proxy.losses) == 1
        assert (handle.id, handle.created) == ("one", True)
        with scene.worker():
            assert handle.result(timeout=30) == 13
    assert scene.rows("SELECT id FROM onward_workflows") == ["one"]
    assert len(scene.bodies()) == 3


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("statement", ["insert_new_starts", "insert_starts", "^COMMIT$"])
def test_a_client_that_loses_the_reply_to_many_starts_has_started_each_once(
    scene: PostgresScene, proxy: Proxy, loss: Loss, statement: str
) -> None:
    """With ids that were made for them, and with chosen ones."""
    scene.start()
    flow = flows.three
    proxy.lose(loss, TEXTS.get(statement, statement))
    with Client(proxy.url) as client:
        are_chosen = statement != "insert_new_starts"
        handles = client.start_many(flow.using(id=f"{n}" if are_chosen else None).bind(n) for n in range(40))
        assert len(proxy.losses) == 1
        assert [handle.created for handle in handles] == [True] * 40
        ids = sorted(handle.id for handle in handles)
    assert scene.rows("SELECT id FROM onward_workflows ORDER BY id") == ids


@pytest.mark.parametrize("loss", LOSSES)
def test_a_client_that_loses_the_reply_to_a_signal_has_sent_it_once(
    scene: PostgresScene, proxy: Proxy, loss: Loss
) -> None:
    """The workflow that waits for it gets it, and there is no second one in its mailbox."""
    scene.start(flows.listening.using(id="one").bind(1))
    with scene.worker(), Client(proxy.url) as client:
        until(lambda: scene.status("one") == "waiting", "that it waits")
        proxy.lose(loss, TEXTS["deliver_signals"])
        client.signal("one", flows.go_on, "yes")
        assert client.handle("one", flows.listening).result(timeout=30) == "yes"
    assert len(proxy.losses) == 1
    assert scene.rows("SELECT count(*) FROM onward_journal WHERE kind = 'signal'") == [1]
    scene.check()


def test_a_worker_whose_connections_break_all_the_time_gets_through(
    scene: PostgresScene, undisturbed: PostgresScene, proxy: Proxy
) -> None:
    """Cut again and again wherever it may be, on a slow network: the undisturbed outcome, each body once."""
    start_trial(scene)
    proxy.delay_s = 0.002
    with scene.worker(url=proxy.url) as worker:
        cuts = 0
        while scene.status(ID) != "completed":
            assert cuts < 300, scene.describe()
            with contextlib.suppress(AssertionError):
                until(lambda: scene.status(ID) == "completed", "the end", timeout_s=0.2)
            proxy.cut()
            cuts += 1
        print(f"{cuts} cuts, {proxy.connection_count} connections")
        scene.until_final()
    assert scene.outcome() == undisturbed.outcome()
    assert {key: count for key, count in (bodies(scene) - bodies(undisturbed)).items() if key[1] != "book"} == {}
    check_log(worker)
    scene.check()
