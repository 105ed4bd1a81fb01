"""The world around webhook.py: Stripe, two services that the shop calls, and a crash; then a count of what happened.

Deliveries are signed as Stripe signs them. The services know a call by its Idempotency-Key, as Stripe's own API does: under a
key that they know nothing happens again. The shop's server is a process of its own, seen from outside and in its database.
"""

import asyncio
import hmac
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from typing import Annotated

import _stage
import httpx
from _database import fresh, look, transaction
from fastapi import FastAPI, Header

import onward

SECRET = "whsec_demo"
SESSION = {"id": "cs_1", "object": "checkout.session", "customer_email": "ada@example.com", "amount_total": 4900}
EVENT = {"id": "evt_1", "object": "event", "type": "checkout.session.completed", "data": {"object": SESSION}}
TABLES = ("events", "orders", "licences", "ledger")
services = FastAPI()
calls: dict[str, Counter[str]] = defaultdict(Counter)  # by service and key
is_called, may_answer = asyncio.Event(), asyncio.Event()


@services.post("/{service}")
async def serve(service: str, idempotency_key: Annotated[str, Header()]) -> None:
    calls[service][idempotency_key] += 1
    is_called.set()
    await may_answer.wait()


async def deliver(shop: str) -> None:
    body, now = json.dumps(EVENT), int(time.time())
    signature = hmac.new(SECRET.encode(), f"{now}.{body}".encode(), "sha256").hexdigest()
    headers = {"Stripe-Signature": f"t={now},v1={signature}", "Content-Type": "application/json; charset=utf-8"}
    async with httpx.AsyncClient(timeout=60) as stripe:
        answer = await stripe.post(f"{shop}/stripe", content=body, headers=headers)
    print(f"{EVENT['id']} is delivered, and answered with {answer.raise_for_status().status_code}.", flush=True)


def start_server(fd: int) -> subprocess.Popen[bytes]:
    where = ("--app-dir", os.path.dirname(__file__), "--fd", str(fd), "--log-level", "error")
    return _stage.start("uvicorn", "webhook:shop", *where, pass_fds=[fd])


async def play() -> None:
    listener, shop = _stage.listen()
    async with _stage.served(services) as os.environ["SERVICES_URL"], onward.AsyncClient(fresh("shop")) as client:
        server = start_server(listener.fileno())
        await deliver(shop)
        await asyncio.wait_for(is_called.wait(), timeout=120)
        _stage.kill(server, "while it waits for the access service")
        may_answer.set()
        start_server(listener.fileno())
        await deliver(shop)
        await deliver(shop)
        handle = client.handle(EVENT["id"])
        await handle.result(timeout=120)
        tries = next(entry.tries for entry in await handle.journal() if entry.key == "book")
        found = {"workflow": sum((await client.counts()).values())}
    with transaction() as database:
        found |= {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}
    found |= {service: len(keys) for service, keys in calls.items()}
    print(f"""Completed. {look(EVENT["id"])}
  3 deliveries   {found["events"]} event, {found["workflow"]} workflow
  access         {found["access"]} provision  (calls: {calls["access"].total()}, one Idempotency-Key)
  mail           {found["mail"]} confirmation  (calls: {calls["mail"].total()})
  rows           {found["orders"]} order, {found["licences"]} licence, {found["ledger"]} ledger entry  (all in try {tries})""")
    if set(found.values()) != {1}:
        sys.exit("BROKEN: something happened twice, or not at all")
    print("Ok: one provision, one mail, three rows.")
