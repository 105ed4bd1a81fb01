"""The webhook, run as its reader would run it, and its application alone, against what Stripe might send."""

from __future__ import annotations

import hmac
import importlib
import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import onward
from tests.examples.support import EXAMPLES, environment, require_demo, without

EXAMPLE = EXAMPLES / "webhook.py"
FILE = "shop.db"


def _rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_three_deliveries_and_a_kill_are_one_provision_one_mail_and_three_rows(tmp_path: Path) -> None:
    require_demo()
    run = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    answered = "evt_1 is delivered, and answered with 200."
    assert re.fullmatch(r"Process \d+ is killed with SIGKILL while it waits for the access service\.", lines[1])
    assert [lines[0], *lines[2:4]] == [answered] * 3
    assert lines[5:] == [
        "  3 deliveries   1 event, 1 workflow",
        "  access         1 provision  (calls: 2, one Idempotency-Key)",
        "  mail           1 confirmation  (calls: 1)",
        "  rows           1 order, 1 licence, 1 ledger entry  (all in try 2)",
        "Ok: one provision, one mail, three rows.",
    ]
    place = re.fullmatch(r"Completed. Look at it: onward show evt_1 --url sqlite:///(\S+)", lines[4])
    assert place is not None
    database = Path(place[1])
    assert _rows(database, "SELECT * FROM events") == [("evt_1",)]
    assert _rows(database, "SELECT * FROM orders") == [("cs_1", "ada@example.com")]
    assert _rows(database, "SELECT * FROM licences") == [("ada@example.com",)]
    assert _rows(database, "SELECT * FROM ledger") == [("cs_1", 4900)]
    assert _rows(database, "SELECT id, status FROM onward_workflows") == [("evt_1", "completed")]
    assert _rows(database, "SELECT key, tries FROM onward_journal WHERE kind = 'step' ORDER BY seq") == [
        ("provision", 1), ("confirm", 1), ("book", 2),
    ]  # fmt: skip


SPOILED = """
import asyncio, sys
sys.path.insert(0, {examples!r})
import _database, _webhook_world as world
deliver = world.deliver

async def deliver_and_book_by_hand(shop):
    await deliver(shop)
    with _database.transaction() as database:
        _database.insert(database, "licences", "eve@example.com")

world.deliver = deliver_and_book_by_hand
asyncio.run(world.play())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_fails_where_a_row_is_there_twice(tmp_path: Path) -> None:
    require_demo()
    run = subprocess.run(
        [sys.executable, "-c", SPOILED.format(examples=str(EXAMPLES))],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 order, 4 licence, 1 ledger entry" in run.stdout
    assert run.stderr.endswith("BROKEN: something happened twice, or not at all\n")


@pytest.mark.parametrize("package", ["fastapi", "stripe"])
def test_without_a_package_it_ends_with_the_pip_command(package: str) -> None:
    assert without(package, EXAMPLE) == f'this example needs {package}: pip install "onward[demo]"\n'


@pytest.fixture
def webhook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example's module in a folder of its own, its tables made; no worker runs."""
    require_demo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("ONWARD_DATABASE_URL", f"sqlite:///{FILE}")
    module = importlib.import_module("webhook")
    with module.client as client, module.transaction() as database:
        client.counts()  # makes the tables of Onward
        for table in module.TABLES:
            database.execute(f"CREATE TABLE {table}")
        database.commit()
        yield module
    for name in ("webhook", "_webhook_world", "_stage", "_database"):
        sys.modules.pop(name, None)


def _deliver(webhook: ModuleType, *, secret: str = "whsec_demo", **changes: Any) -> int:
    testclient = importlib.import_module("starlette.testclient")
    body, now = json.dumps(sys.modules["_webhook_world"].EVENT | changes), int(time.time())
    signature = hmac.new(secret.encode(), f"{now}.{body}".encode(), "sha256").hexdigest()
    browser = testclient.TestClient(webhook.shop, raise_server_exceptions=False)
    answer = browser.post("/stripe", content=body, headers={"Stripe-Signature": f"t={now},v1={signature}"})
    return int(answer.status_code)


def _kept(webhook: ModuleType) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    shop = Path(FILE)
    return _rows(shop, "SELECT id FROM events"), _rows(shop, "SELECT id, payload FROM onward_workflows")


def test_an_event_is_kept_and_its_workflow_started_however_often_it_comes(webhook: ModuleType) -> None:
    assert [_deliver(webhook), _deliver(webhook)] == [200, 200]
    arguments = '{"session":"cs_1","customer":"ada@example.com","cents":4900}'
    assert _kept(webhook) == ([("evt_1",)], [("evt_1", arguments)])


def test_an_event_that_stripe_did_not_sign_is_refused_and_leaves_nothing(webhook: ModuleType) -> None:
    assert _deliver(webhook, secret="whsec_forged") == 400
    assert _kept(webhook) == ([], [])


def test_an_event_of_another_type_is_answered_and_starts_nothing(webhook: ModuleType) -> None:
    assert _deliver(webhook, type="checkout.session.expired") == 200
    assert _kept(webhook) == ([], [])


def test_where_the_start_is_refused_the_event_is_not_kept_either(webhook: ModuleType) -> None:
    webhook.client.start(webhook.fulfil.using(id="evt_1"), "cs_2", "eve@example.com", 1)
    assert _deliver(webhook) == 500
    events, workflows = _kept(webhook)
    assert events == []
    assert [id for id, _ in workflows] == ["evt_1"]
    with pytest.raises(onward.WorkflowIdConflict):
        webhook.client.start(webhook.fulfil.using(id="evt_1"), "cs_1", "ada@example.com", 4900)
