-- What a client writes in a caller's transaction, beside starts.sql. The connection is the caller's: nothing here may depend on
-- its settings, and only text goes in and out, because drivers differ in what they make of json. No statement here locks or
-- changes a workflow's row: signals and cancels are put into the outbox, which a deferred trigger empties at the commit.

-- name: open_savepoint
-- First of all: outside a transaction it fails, and a driver that opens transactions by itself opens one now.
SAVEPOINT onward;

-- name: undo_to_savepoint
ROLLBACK TO SAVEPOINT onward;

-- name: release_savepoint
RELEASE SAVEPOINT onward;

-- name: read_place
-- [server and database, whatever they are called; the database's name; whether it has the schema]. A server is told from its
-- copies and its standby by the time at which it was started.
SELECT concat_ws(' ', d.oid, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint), d.datname::text,
       to_regclass('onward.migrations') IS NOT NULL
FROM pg_catalog.pg_database AS d WHERE d.datname = current_database();

-- name: read_migrations
SELECT coalesce(json_agg(json_build_array(m.number, m.name, m.oldest_library, m.checksum) ORDER BY m.number), '[]')::text
FROM onward.migrations AS m;

-- name: tell_at_commit
-- PostgreSQL delivers it with the commit, and drops it with a rollback.
SELECT pg_notify(:channel, '')::text;

-- name: send
-- Signals and cancels, in order; → [id, status, epoch] of their targets. Those that have ended get nothing. By the primary key.
WITH r AS MATERIALIZED (
    SELECT r.n, r.id, r.kind, r.name, r.token, r.payload
    FROM ROWS FROM (json_to_recordset(:rows::text::json) AS (id text, kind text, name text, token text, payload text))
        WITH ORDINALITY AS r (id, kind, name, token, payload, n)
), found AS MATERIALIZED (
    SELECT w.id, w.status, w.epoch
    FROM (SELECT DISTINCT r.id FROM r) AS i JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.id])
), sent AS (
    INSERT INTO onward.outbox (workflow_id, kind, name, token, payload)
    SELECT r.id, r.kind, r.name, r.token, r.payload::json FROM r JOIN found AS f ON f.id = r.id
    WHERE f.status IN ('pending', 'running', 'waiting') ORDER BY r.n
)
SELECT coalesce(json_agg(json_build_array(f.id, f.status, f.epoch)), '[]')::text FROM found AS f;
