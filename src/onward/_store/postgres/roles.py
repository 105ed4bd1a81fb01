"""Roles with as few rights as their work needs, as an SQL script (`onward migrate --roles`); which rights, stands in `RIGHTS`.

Row-level security is on for every table and no policy is made by the migrations: whoever is not the owner sees nothing, whatever
is granted to it by default (on Supabase: `anon`, `authenticated`). This script makes the policies, each for one of its own roles.
Pure; it is run by people, and again after each upgrade.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

from onward._store.postgres.objects import names_of

Kind: TypeAlias = Literal["migrator", "worker", "client", "reader"]
Right: TypeAlias = Literal["SELECT", "INSERT", "UPDATE", "DELETE"]

SQL_INTERFACE = {
    "start": "text, json, text, text, integer, text, interval, timestamptz, interval, json, integer",
    "signal": "text, text, json, text",
    "cancel": "text",
    "result": "text",
}
"""The functions for every other language, with the types of their parameters; see docs/reference-sql.md."""

_ALL: tuple[Right, ...] = ("SELECT", "INSERT", "UPDATE", "DELETE")
_ENDED = (
    "status", "next_run_at", "worker", "signals", "attempts", "crashes", "awaited", "wake_floor", "divergences", "diverged_by",
    "waiting_for", "cancel_requested_at", "deadline", "result", "error", "updated_at", "finished_at",
)  # fmt: skip
"""What a cancel, a signal or an operator's retry changes of a workflow: never its arguments, type, id or seed."""
_READABLE = (
    "id", "type", "queue", "priority", "status", "next_run_at", "worker", "epoch", "signals", "run", "attempts", "crashes",
    "max_attempts", "awaited", "wake_floor", "divergences", "diverged_by", "partition", "parent_id", "version", "code_version",
    "created_at", "started_at", "updated_at", "finished_at", "deadline", "timeout_us", "cancel_requested_at", "digest", "step",
    "waiting_for", "tags", "progress", "result", "error", "payload",
)  # fmt: skip
"""All columns of `workflows` but the seed, from which a workflow's secrets may have been drawn."""

_READ = ("journal", "mailbox", "waiters", "step_retries", "workers", "moving", "migrations")

RIGHTS: Mapping[Kind, Mapping[str, Mapping[Right, tuple[str, ...]]]] = {
    "worker": {
        **{name: dict.fromkeys(_ALL, ()) for name in names_of("table") if name not in ("migrations", "moving")},
        "migrations": {"SELECT": ()},
        "moving": {"SELECT": ()},
    },
    "client": {
        "workflows": {"SELECT": (), "INSERT": (), "UPDATE": _ENDED},
        "journal": {"SELECT": (), "UPDATE": ("struck",)},
        "mailbox": {"SELECT": (), "INSERT": (), "DELETE": ()},
        "outbox": {"INSERT": ()},
        "waiters": {"SELECT": (), "DELETE": ()},
        "step_retries": {"SELECT": (), "UPDATE": ("next_at",), "DELETE": ()},
        "workers": {"SELECT": ()},
        "moving": {"SELECT": ()},
        "migrations": {"SELECT": ()},
    },
    "reader": {
        **{name: {"SELECT": ()} for name in _READ},
        "workflows": {"SELECT": _READABLE},
    },
}
"""By role, table and right: the columns; none named: all of them."""


def role_name(schema: str, kind: Kind) -> str:
    """`onward_worker` in the schema `onward`."""
    return f"{schema}_{kind}"


def roles_sql(schema: str, quoted_schema: str) -> str:
    """The script for one schema. Run it as a superuser, or as the schema's owner with CREATEROLE; as often as you like."""
    return "\n".join(_lines(schema, quoted_schema)) + "\n"


def _quoted(name: str) -> str:
    return name if name == name.lower() else f'"{name}"'


def _lines(schema: str, place: str) -> Iterator[str]:
    names = {kind: role_name(schema, kind) for kind in ("migrator", "worker", "client", "reader")}
    roles = {kind: _quoted(name) for kind, name in names.items()}
    yield f"-- Roles for Onward in the schema {schema}: groups without login. Give them to the users that log in, for example"
    yield f"--     GRANT {roles['worker']} TO the_user_of_the_workers;"
    yield f"-- {roles['migrator']}: owns the schema; runs `onward migrate` and `onward migrate --drop`."
    yield f"-- {roles['worker']}: whatever a worker does, pruning included."
    yield f"-- {roles['client']}: start, signal, cancel, retry and read, through the library or the SQL functions."
    yield f"-- {roles['reader']}: `onward ls`, `show` and `doctor`, dashboards; neither the seed nor any function."
    yield "-- Run it again after each `onward migrate`. It takes nothing away from other roles."
    yield "BEGIN;"
    yield "DO $$ BEGIN"
    for name, role in zip(names.values(), roles.values(), strict=True):
        is_there = f"SELECT 1 FROM pg_roles WHERE rolname = '{name}'"  # noqa: S608  # address.py lets letters and digits through
        yield f"    IF NOT EXISTS ({is_there}) THEN CREATE ROLE {role} NOLOGIN; END IF;"
    yield "    IF NOT current_setting('is_superuser')::boolean THEN  -- needed to hand the tables over"
    yield f"        GRANT {roles['migrator']} TO CURRENT_USER;"
    yield f"        EXECUTE format('GRANT CREATE ON DATABASE %I TO {roles['migrator']}', current_database());"
    yield "    END IF;"
    yield "END $$;"
    yield ""
    yield f"ALTER SCHEMA {place} OWNER TO {roles['migrator']};"
    for table in names_of("table"):
        yield f"ALTER TABLE {place}.{table} OWNER TO {roles['migrator']};"
    for view in names_of("view"):
        yield f"ALTER VIEW {place}.{view} OWNER TO {roles['migrator']};"
    for function in dict.fromkeys(names_of("function")):
        yield f"ALTER FUNCTION {place}.{function} OWNER TO {roles['migrator']};"
    for kind, rights in RIGHTS.items():
        role = roles[kind]
        yield ""
        yield f"GRANT USAGE ON SCHEMA {place} TO {role};"
        for table, granted in rights.items():
            yield f"REVOKE ALL ON {place}.{table} FROM {role};"
            what = ", ".join(
                f"{right} ({', '.join(columns)})" if columns else right for right, columns in granted.items()
            )
            yield f"GRANT {what} ON {place}.{table} TO {role};"
            yield f"DROP POLICY IF EXISTS {role} ON {place}.{table};"
            only_reads = list(granted) == ["SELECT"]
            what = "FOR SELECT" if only_reads else "FOR ALL"
            check = "" if only_reads else " WITH CHECK (true)"
            yield f"CREATE POLICY {role} ON {place}.{table} {what} TO {role} USING (true){check};"
        for view in names_of("view"):
            yield f"GRANT SELECT ON {place}.{view} TO {role};"
        for function, parameters in SQL_INTERFACE.items() if kind != "reader" else ():
            yield f"GRANT EXECUTE ON FUNCTION {place}.{function}({parameters}) TO {role};"
    yield "COMMIT;"
