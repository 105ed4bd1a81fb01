"""A webhook that may come again: its event is kept and its workflow is started in one transaction, or neither is.

    pip install "onward[demo]"
    python webhook.py

Stripe delivers an event until it gets a 200, and at times once more. _webhook_world.py plays that: the event comes three times,
the second of three updates fails at first, and the server is killed with SIGKILL in between. Then it counts what happened.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import _webhook_world as world  # first: it says what is missing
import httpx
import stripe
from _database import Database, insert, transaction
from fastapi import FastAPI, HTTPException, Request

import onward

EVENTS = "events (id text PRIMARY KEY)"  # the shop's own tables, in the same database as Onward's
TABLES = EVENTS, "orders (session text, customer text)", "licences (customer text)", "ledger (session text, cents int)"


@onward.step(retry=4)
def call(service: str, customer: str) -> None:
    key = onward.current_step().idempotency_key  # the same on every try: the service recognises a repetition
    url = f"{os.environ['SERVICES_URL']}/{service}"
    httpx.post(url, json={"customer": customer}, headers={"Idempotency-Key": key}, timeout=60).raise_for_status()


@onward.step(retry=4, transactional=True)  # the three rows and the record of this step: all of them, or none
def book(database: Database, session: str, customer: str, cents: int) -> None:
    insert(database, "orders", session, customer)
    if onward.current_step().try_number == 1:
        raise RuntimeError("the second update fails, the first time")
    insert(database, "licences", customer)
    insert(database, "ledger", session, cents)


@onward.workflow
async def fulfil(session: str, customer: str, cents: int) -> None:
    await call.using(key="provision")("access", customer)
    await call.using(key="confirm")("mail", customer)
    await book(session, customer, cents)


@contextlib.asynccontextmanager
async def working(shop: FastAPI) -> AsyncIterator[None]:
    with transaction() as database:
        for table in TABLES:
            database.execute(f"CREATE TABLE IF NOT EXISTS {table}")
    async with onward.Worker(workflows=[fulfil], lease=6):  # so soon another takes over where this one dies
        yield


shop = FastAPI(lifespan=working)
client = onward.Client()


@shop.post("/stripe")
async def receive(post: Request) -> None:
    try:
        event = stripe.Webhook.construct_event(await post.body(), post.headers.get("Stripe-Signature"), world.SECRET)
    except stripe.SignatureVerificationError as error:
        raise HTTPException(400, "not from Stripe") from error
    if event.type == "checkout.session.completed":
        await asyncio.to_thread(accept, event.id, event.data.object)  # the 200 goes out once it is durable


def accept(event_id: str, paid: stripe.checkout.Session) -> None:
    with transaction() as database:  # of sqlite3 or psycopg; commits at the end, or rolls back
        insert(database, "events", event_id)
        client.start(fulfil.using(id=event_id, tx=database), paid.id, paid.customer_email, paid.amount_total)


if __name__ == "__main__":
    asyncio.run(world.play())
