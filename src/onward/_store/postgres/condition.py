"""The server's condition, as far as Onward depends on it: durability, connections, vacuum and what holds it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from onward._store.diagnosis import Finding, Level
from onward._store.postgres.objects import names_of
from onward._store.postgres.statements import as_json
from onward._store.postgres.upkeep import Connection, ask_for
from onward._store.quantities import counted, span

if TYPE_CHECKING:
    from onward._store.postgres.database import Database

LONG_S, VERY_LONG_S = 300, 3600
"""A transaction open for longer holds vacuum back: worth knowing, and a danger."""
OLD_AGE = 1_000_000
"""Transactions behind: a replication slot that holds back more is worth knowing."""
FULL, NEARLY_FULL = 0.95, 0.8
MANY_DEAD = 50_000
WRAPAROUND = 1_500_000_000


def durability(settings: Mapping[str, str]) -> Iterator[Finding]:
    """Whether what is committed stays after a crash of the server."""
    names = ("fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names")
    data = {name: settings.get(name) for name in names}
    off = [name for name in ("fsync", "full_page_writes") if settings.get(name) == "off"]
    if off:
        yield Finding(
            check="durability",
            level="fail",
            text=f"{' and '.join(off)} = off: a crash of the machine can lose committed workflows or damage the database",
            cure=f"ALTER SYSTEM SET {off[0]} = on; SELECT pg_reload_conf();",
            data=data,
        )
    elif settings.get("synchronous_commit") == "off":
        yield Finding(
            check="durability",
            level="warn",
            text="synchronous_commit = off for this role: Onward's own commits wait for the disk all the same, but starts and "
            "signals in your own transactions (tx=, onward.start in SQL) can be lost in a crash of the server",
            cure="SET LOCAL synchronous_commit = on in those transactions, or ALTER ROLE … RESET synchronous_commit",
            data=data,
        )
    else:
        yield Finding(
            check="durability",
            level="ok",
            text=f"fsync=on, full_page_writes=on, synchronous_commit={data['synchronous_commit']}: what is committed stays",
            data=data,
        )


async def connections(conn: Connection, database: Database, settings: Mapping[str, str]) -> list[Finding]:
    """How much room there is for more."""
    counts = await ask_for(conn, database, "look_at_connections", tuple[int, int, int, int | None, int | None])
    everywhere, here, ours, role_limit, database_limit = counts
    reserved = ("superuser_reserved_connections", "reserved_connections")
    most = int(settings["max_connections"]) - sum(int(settings.get(name, 0)) for name in reserved)
    limits = [(everywhere, most, "max_connections")]
    limits += [(ours, role_limit, "this role's CONNECTION LIMIT")] if role_limit else []
    limits += [(here, database_limit, "this database's CONNECTION LIMIT")] if database_limit else []
    used, limit, name = max(limits, key=lambda one: one[0] / one[1])
    share = used / limit
    level: Level = "fail" if share > FULL else "warn" if share > NEARLY_FULL else "ok"
    return [
        Finding(
            check="connections",
            level=level,
            text=f"{used} of {limit} connections used ({name}); {ours} by this role",
            cure=""
            if level == "ok"
            else "a worker takes up to seven: raise the limit, run fewer workers, or put a pooler before them",
            data={"used": used, "limit": limit, "by_role": ours},
        )
    ]


async def horizon(conn: Connection, database: Database, *, may_see_all: bool) -> list[Finding]:
    """What keeps vacuum from removing dead rows: then claims and lists slow down, little by little."""
    rows = await ask_for(conn, database, "look_at_horizon", list[tuple[str, str, int | None, int]])
    found = [one for row in rows if (one := _holder(*row)) is not None]
    if found:
        return found
    text = "no long transaction, prepared transaction or idle replication slot holds vacuum back"
    if not may_see_all:
        text += ", as far as this role may see (GRANT pg_read_all_stats shows all)"
    return [Finding(check="horizon", level="ok", text=text)]


def _holder(what: str, name: str, seconds: int | None, age: int) -> Finding | None:
    data = {"what": what, "name": name, "seconds": seconds, "age": age}
    is_old = seconds > LONG_S if seconds is not None else age > OLD_AGE
    if not is_old:
        return None
    since = f"for {span(seconds)}" if seconds is not None else f"over {age:,} transactions"
    words, cure = {
        "transaction": ("an open transaction", "SELECT pg_terminate_backend(PID); or set idle_in_transaction_session_timeout"),
        "standby": ("a standby with hot_standby_feedback", "end the long query on the standby"),
        "prepared": ("a prepared transaction", "COMMIT PREPARED or ROLLBACK PREPARED it"),
        "slot": ("a replication slot", "let its consumer catch up"),
        "idle slot": ("a replication slot that nobody reads", f"if it is of no use: SELECT pg_drop_replication_slot('{name}')"),
    }[what]  # fmt: skip
    return Finding(
        check="horizon",
        level="fail" if seconds is not None and seconds > VERY_LONG_S else "warn",
        text=f"{words} holds vacuum back {since}: {name}",
        cure=cure,
        data=data,
    )


async def tables(conn: Connection, database: Database, settings: Mapping[str, str]) -> list[Finding]:
    """Dead rows, and when they were last removed."""
    rows = await ask_for(
        conn,
        database,
        "look_at_tables",
        list[tuple[str, int, int, int | None, bool, int]],
        schema=database.address.schema,
        tables=as_json(names_of("table")),
    )
    found: list[Finding] = []
    off = [name for name, _, _, _, is_on, _ in rows if not is_on]
    if "off" in (settings.get("autovacuum"), settings.get("track_counts")):
        off = ["every table"]
    if off:
        cure = (
            "ALTER SYSTEM SET autovacuum = on"
            if off == ["every table"]
            else f"ALTER TABLE … RESET (autovacuum_enabled) on {', '.join(off)}"
        )
        found.append(Finding(check="vacuum", level="fail", text=f"autovacuum is off for {', '.join(off)}", cure=cure))
    for name, live, dead, seconds, _, age in rows:
        place = f"{database.address.quoted_schema}.{name}"
        data = {"table": name, "live": live, "dead": dead, "vacuumed_s": seconds, "age": age}
        if dead > max(MANY_DEAD, live):
            last = "never vacuumed" if seconds is None else f"vacuumed {span(seconds)} ago"
            found.append(
                Finding(
                    check="vacuum",
                    level="warn",
                    text=f"{place} has {dead:,} dead rows beside {live:,} live ones ({last})",
                    cure=f"see `horizon` for what holds it back; then VACUUM (ANALYZE) {place};",
                    data=data,
                )
            )
        if age > WRAPAROUND:
            text = f"{place} was last frozen {age:,} transactions ago: the server stops writing at two billion"
            found.append(Finding(check="vacuum", level="fail", text=text, cure=f"VACUUM (FREEZE) {place};", data=data))
    if not found:
        total = sum(dead for _, _, dead, _, _, _ in rows)
        times = [seconds for _, _, _, seconds, _, _ in rows if seconds is not None]
        text = f"{counted(total, 'dead row')} in all tables"
        if times:
            text += f"; last vacuumed {span(min(times))} ago"
        found.append(Finding(check="vacuum", level="ok", text=text, data={"dead": total}))
    return found
