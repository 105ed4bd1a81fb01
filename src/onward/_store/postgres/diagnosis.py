"""A look at one PostgreSQL database for `onward doctor`: the way there, the schema, our rights, and the work.

Reads only, by two short-lived connections, and goes on as far as the server lets it; what fails is a finding. The server's own
state is looked at in condition.py; the work is read by facts.py and judged by the checks that all databases share.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

from onward._store.diagnosis import Diagnosis, Finding, Work
from onward._store.postgres import condition
from onward._store.postgres.facts import read_work
from onward._store.postgres.faults import classify
from onward._store.postgres.migrations import OLDEST_SERVER, applied_migrations, known_migrations
from onward._store.postgres.objects import names_of, own_objects, statement_of
from onward._store.postgres.roles import RIGHTS, role_name
from onward._store.postgres.statements import as_json
from onward._store.postgres.transfer import read_moves
from onward._store.postgres.upkeep import Connection, ask_for, connection, is_no_database
from onward._store.quantities import span
from onward._store.schema import pending_migrations
from onward._store.transfer import move_findings
from onward.errors import ConfigurationError, SchemaError

if TYPE_CHECKING:
    from onward._store.postgres.database import Database

HEARING_S = 3.0
CLOCK_TOLERANCE_S = 2.0
_REVIVAL = "restore a backup, or make an empty schema anew: onward migrate --drop, then onward migrate"


class Server(msgspec.Struct, frozen=True):
    """See look_at_server."""

    version: str
    number: int
    user: str
    database: str
    pid: int
    is_standby: bool
    clock_us: int
    up_s: int
    is_encrypted: bool | None
    may_see_all: bool
    settings: dict[str, str]


async def diagnose(database: Database, *, thorough: bool) -> Diagnosis:
    """Look at the database. Raises ConfigurationError where there is none."""
    found: list[Finding] = []
    work: Work | None = None
    try:
        async with connection(database) as conn:
            began = time.time()
            server: Server = await ask_for(conn, database, "look_at_server", Server)
            found += _server(server, conn)
            found += _clock(server, (began + time.time()) / 2, time.time() - began)
            found += [one async for one in _way(conn, database, server)]
            found += condition.durability(server.settings)
            found += await condition.connections(conn, database, server.settings)
            if await _all_well(found, _rights(conn, database)) and await _all_well(found, _schema(conn, database)):
                found += await condition.tables(conn, database, server.settings)
                found += move_findings(await read_moves(conn, database))
                work = await read_work(conn, database, thorough=thorough)
            found += await condition.horizon(conn, database, may_see_all=server.may_see_all)
    except psycopg.Error as error:
        if is_no_database(error):
            raise ConfigurationError(
                f"there is no database {database.name}: check the URL, or create it with createdb"
            ) from error
        found.append(
            Finding(check="access", level="fail", text=str(classify(error, database=database.name)), is_unusable=True)
        )
    return Diagnosis(url=database.name, findings=tuple(found), work=work)


async def _all_well(found: list[Finding], more: AsyncIterator[Finding]) -> bool:
    """Add these findings; whether it makes sense to go on."""
    new = [one async for one in more]
    found += new
    return not any(finding.is_unusable for finding in new)


def _server(server: Server, conn: Connection) -> Iterator[Finding]:
    data = {"version": server.version, "is_standby": server.is_standby, "up_s": server.up_s, "user": server.user}
    if server.number < OLDEST_SERVER:
        yield Finding(
            check="server",
            level="fail",
            text=f"PostgreSQL {server.version} is too old",
            cure=f"Onward needs PostgreSQL {OLDEST_SERVER // 10000} or newer",
            data=data,
            is_unusable=True,
        )
        return
    if server.is_standby or server.settings.get("default_transaction_read_only") == "on":
        why = "is a standby" if server.is_standby else "lets this role read only (default_transaction_read_only)"
        yield Finding(
            check="server",
            level="fail",
            text=f"PostgreSQL {server.version} {why}: no worker and no client can write here",
            cure="name the primary in the URL, or several hosts with target_session_attrs=read-write",
            data=data,
        )
        return
    is_local = conn.info.host.startswith("/") or not conn.info.host
    way = "on this machine" if is_local else "by TLS" if server.is_encrypted else "without TLS"
    text = f"PostgreSQL {server.version}, up for {span(server.up_s)}; connected as {server.user} {way}"
    yield Finding(check="server", level="ok", text=text, data=data)


def _clock(server: Server, here: float, round_trip_s: float) -> Iterator[Finding]:
    """The server's clock decides everything; ours only what people read and what programs compute from it."""
    offset_s = server.clock_us / 1e6 - here
    data = {"offset_s": round(offset_s, 3), "round_trip_s": round(round_trip_s, 3)}
    if abs(offset_s) <= CLOCK_TOLERANCE_S + round_trip_s:
        text = f"this machine's clock and the server's agree (within {max(0.001, abs(offset_s)):.3f} s)"
        yield Finding(check="clock-offset", level="ok", text=text, data=data)
        return
    yield Finding(
        check="clock-offset",
        level="warn",
        text=f"this machine's clock is {span(abs(offset_s))} {'behind' if offset_s > 0 else 'ahead of'} the server's",
        cure="set both by NTP; workers go by the server's clock, but a run_at= that programs compute here is off by as much",
        data=data,
    )


async def _way(conn: Connection, database: Database, server: Server) -> AsyncIterator[Finding]:
    """What lies between us and the server, and whether notifications come through."""
    is_pooled = server.pid != conn.info.backend_pid  # a pooler makes up the number that it tells us
    mode = await _pool_mode(conn, database) if is_pooled else None
    is_poll_only = database.address.is_poll_only
    data: dict[str, Any] = {"pooler": mode, "poll_only": is_poll_only}
    if mode == "transaction" and not is_poll_only:
        yield Finding(
            check="pooler",
            level="fail",
            text="a pooler in transaction mode is in between: LISTEN, prepared statements, settings and session locks get lost",
            cure="add poll_only=1 to the URL (…?poll_only=1), or let the workers connect to the server itself",
            data=data,
        )
        return
    if is_poll_only:
        behind = f"behind a pooler in {mode} mode" if is_pooled else "although no pooler is in between"
        yield Finding(
            check="pooler",
            level="ok" if mode == "transaction" else "warn",
            text=f"poll-only mode {behind}: workers find new work by polling, and deaths by leases that run out",
            cure="remove poll_only=1 from the URL: starts are then noticed in milliseconds",
            data=data,
        )
        return
    hears = await _hears_itself(conn)
    behind = f"a pooler in {mode} mode is in between" if is_pooled else "no pooler is in between"
    yield Finding(
        check="pooler",
        level="ok" if hears else "warn",
        text=f"{behind}; notifications {'arrive' if hears else 'do not arrive'}",
        cure="" if hears else "workers poll meanwhile; what is in between must pass LISTEN and NOTIFY on",
        data={**data, "hears": hears},
    )


async def _pool_mode(conn: Connection, database: Database) -> str:
    """`transaction` if the server process that just worked for us works for another connection now, though ours is open."""
    pids: list[set[int]] = [set(), set()]
    async with connection(database) as other:
        for _ in range(3):
            for mine, one in zip(pids, (conn, other), strict=True):
                row = await (await one.execute("SELECT pg_backend_pid()")).fetchone()
                mine.add(row[0] if row else 0)
    return "session" if all(len(mine) == 1 for mine in pids) and pids[0] != pids[1] else "transaction"


async def _hears_itself(conn: Connection) -> bool:
    channel = f"onward_doctor_{secrets.token_hex(8)}"
    try:
        await conn.execute(f"LISTEN {channel}".encode())
        await conn.execute(f"NOTIFY {channel}".encode())
        async for news in conn.notifies(timeout=HEARING_S, stop_after=1):
            return news.channel == channel
    except (TimeoutError, psycopg.Error):
        return False
    finally:
        if not conn.broken:
            await conn.execute(b"UNLISTEN *")
    return False


async def _schema(conn: Connection, database: Database) -> AsyncIterator[Finding]:
    schema = database.address.schema
    applied, known = await applied_migrations(conn, database), known_migrations()
    version = max((one.number for one in applied), default=0)
    data: dict[str, Any] = {"schema": schema, "version": version, "known": len(known)}
    cure = f"run: onward migrate --url {database.name!r}"
    try:
        pending = pending_migrations(known, applied, database=database.name)
    except SchemaError as error:
        yield Finding(check="schema", level="fail", text=str(error), data=data, is_unusable=True)
        return
    if pending:
        text = f"lacks migration {pending[0].number} ({pending[0].name})" if applied else "has no Onward schema"
        yield Finding(
            check="schema", level="fail", text=f"{database.name} {text}", cure=cure, data=data, is_unusable=True
        )
        return
    rows = await ask_for(conn, database, "look_at_objects", list[tuple[str, str, bool]], schema=schema)
    there = {(kind, name): is_valid for kind, name, is_valid in rows}
    missing = [own for own in own_objects() if (own.kind, own.name) not in there]
    invalid = [own for own in own_objects() if there.get((own.kind, own.name)) is False]
    data = {**data, "missing": [own.name for own in missing], "invalid": [own.name for own in invalid]}
    lost = [own for own in missing if own.kind != "index"]
    if lost:
        yield Finding(
            check="schema",
            level="fail",
            text=f"schema {version}, but somebody has removed {', '.join(f'{own.kind} {own.name}' for own in lost)}",
            cure=_REVIVAL,
            data=data,
            is_unusable=any(own.kind == "table" for own in lost),
        )
    for own in missing:
        if own.kind == "index":
            yield Finding(
                check="indexes",
                level="fail",
                text=f"index {own.name} is missing: its statements read whole tables",
                cure=_without_blocking(statement_of(own, database.address.quoted_schema)),
                data=data,
            )
    for own in invalid:
        place = database.address.quoted_schema
        is_index = own.kind == "index"
        yield Finding(
            check="indexes" if is_index else "schema",
            level="fail",
            text=f"index {own.name} is not valid: its making was interrupted"
            if is_index
            else f"trigger {own.name} is off: signals and cancels of your transactions and of SQL do not arrive",
            cure=f"REINDEX INDEX CONCURRENTLY {place}.{own.name};"
            if is_index
            else f"ALTER TABLE {place}.outbox ENABLE TRIGGER {own.name};",
            data=data,
        )
    if not missing and not invalid:
        text = f"schema {schema!r}, version {version}, up to date"
        if version > len(known):
            text = f"schema {schema!r}, version {version}, made by a newer onward that lets this one go on"
        yield Finding(check="schema", level="ok", text=text, data=data)


def _without_blocking(statement: str) -> str:
    return statement.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)


async def _rights(conn: Connection, database: Database) -> AsyncIterator[Finding]:
    """What this role may do, against what the roles of `onward migrate --roles` may."""
    schema = database.address.schema
    rows = await ask_for(
        conn,
        database,
        "look_at_rights",
        list[tuple[str, list[str], bool, bool]],
        schema=schema,
        tables=as_json(names_of("table")),
    )
    hidden = [table for table, rights, is_hidden, _ in rows if is_hidden and rights]
    held = {table: set(rights) for table, rights, _, _ in rows}
    if not rows:
        return  # there is no schema, or it has other tables: `schema` says it
    is_owner = all(owns for _, _, _, owns in rows)
    fits = [kind for kind, wanted in RIGHTS.items() if _has(held, wanted)]
    data = {"fits": fits, "is_owner": is_owner, "hidden": hidden}
    if hidden:
        yield Finding(
            check="rights",
            level="fail",
            text=f"row-level security hides every row of {', '.join(hidden)} from this role",
            cure="connect as the schema's owner, or be given a role of `onward migrate --roles`: "
            f"GRANT {role_name(schema, 'worker')} TO …",
            data=data,
            is_unusable=True,
        )
    elif is_owner:
        yield Finding(check="rights", level="ok", text="this role owns the tables: it may do everything", data=data)
    elif fits:
        words = {"worker": "what a worker does", "client": "what a client does", "reader": "only read"}
        yield Finding(
            check="rights", level="ok", text=f"this role may do {words[fits[0]]}".replace("do only", "only"), data=data
        )
    else:
        lacks = {
            table: sorted(missing)
            for table, wanted in RIGHTS["client"].items()
            if (missing := {str(right) for right in wanted} - held.get(table, set()))
        }
        yield Finding(
            check="rights",
            level="fail",
            text="this role lacks " + "; ".join(f"{', '.join(rights)} on {table}" for table, rights in lacks.items()),
            cure=f"onward migrate --roles | psql …, then GRANT {role_name(schema, 'client')} TO this role (for workers: "
            f"{role_name(schema, 'worker')})",
            data={**data, "lacks": lacks},
            is_unusable=any("SELECT" in rights for rights in lacks.values()),
        )


def _has(held: Mapping[str, set[str]], wanted: Mapping[str, Mapping[Any, Sequence[str]]]) -> bool:
    return all(held.get(table, set()).issuperset(rights) for table, rights in wanted.items())
