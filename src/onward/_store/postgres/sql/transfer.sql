-- A move to another database: what `onward copy` reads and writes. The columns are those of _store/transfer.py, in its order.
-- Instants by extract, which is exact for any year (`us` is quicker, and exact for two centuries).

-- name: read_moves
SELECT coalesce(json_agg(json_build_array(
    m.role, m.copy_id, m.url, onward.us(m.began_at), onward.us(m.ended_at), m.position::text)), '[]')::text
FROM onward.moving AS m;

-- name: read_refusal
-- [role, URL] while writes are refused.
SELECT json_build_array(m.role, m.url)::text FROM onward.moving AS m WHERE m.role = 'source' OR m.ended_at IS NULL LIMIT 1;

-- name: read_identity
-- Equal exactly where two URLs lead to the same tables: the server, by its start and port, the database, the schema.
SELECT json_build_array(
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, current_setting('port'),
    (SELECT d.oid::bigint FROM pg_database AS d WHERE d.datname = current_database()),
    'onward.moving'::regclass::oid::bigint)::text;

-- name: look_around
-- [unfinished, running, workers whose lease runs, highest id of a mail, bytes]
SELECT json_build_array(
    (SELECT count(*) FROM onward.workflows WHERE status IN ('pending', 'running', 'waiting')),
    (SELECT count(*) FROM onward.workflows WHERE status = 'running'),
    (SELECT count(*) FROM onward.workers WHERE NOT is_dead AND expires_at > {now}),
    coalesce(pg_sequence_last_value(pg_get_serial_sequence('onward.mailbox', 'id')::regclass), 0),
    (SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class AS c
     WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'onward.moving'::regclass)))::text;

-- name: count_rows
SELECT json_build_object(
    'workflows', (SELECT count(*) FROM onward.workflows), 'journal', (SELECT count(*) FROM onward.journal),
    'mailbox', (SELECT count(*) FROM onward.mailbox), 'waiters', (SELECT count(*) FROM onward.waiters),
    'step_retries', (SELECT count(*) FROM onward.step_retries))::text;

-- name: is_empty
SELECT NOT EXISTS (SELECT FROM onward.workflows) AND NOT EXISTS (SELECT FROM onward.journal)
   AND NOT EXISTS (SELECT FROM onward.mailbox) AND NOT EXISTS (SELECT FROM onward.waiters)
   AND NOT EXISTS (SELECT FROM onward.step_retries);

-- name: limit_moving_wait
-- A request for these locks keeps all later writers waiting behind it: it is given up soon, and made again.
SELECT set_config('lock_timeout', '2s', true);

-- name: lock_workflows
-- First, and against row locks as well: every writer begins with this table, so that none is caught in the middle.
LOCK TABLE onward.workflows IN EXCLUSIVE MODE;

-- name: lock_outbox
LOCK TABLE onward.outbox IN SHARE ROW EXCLUSIVE MODE NOWAIT;

-- name: lock_others
LOCK TABLE onward.journal, onward.mailbox, onward.waiters, onward.step_retries, onward.workers IN SHARE ROW EXCLUSIVE MODE;

-- name: mark_target
-- A copy into this schema that ended, and all of whose workflows are gone again, is forgotten. [1] where it is marked.
INSERT INTO onward.moving AS m (role, copy_id, url, began_at) VALUES ('target', :copy_id, :url, {now})
ON CONFLICT (role) DO UPDATE SET
    copy_id = excluded.copy_id, url = excluded.url, began_at = excluded.began_at, ended_at = NULL, position = NULL
WHERE m.ended_at IS NOT NULL
RETURNING 1;

-- name: mark_source
INSERT INTO onward.moving (role, copy_id, url, began_at) VALUES ('source', :copy_id, :url, {now});

-- name: end_executions
-- What runs is due now; what waits or sleeps goes on with that. Rows that never ran keep epoch 0: nobody can hold them.
UPDATE onward.workflows SET
    epoch = epoch + 1, worker = NULL,
    updated_at = CASE WHEN status = 'running' THEN {now} ELSE updated_at END,
    next_run_at = CASE WHEN status = 'running' THEN {now} ELSE next_run_at END,
    status = CASE WHEN status = 'running' THEN 'pending' ELSE status END
WHERE epoch > 0 AND status IN ('pending', 'running', 'waiting');

-- name: begin_writing
UPDATE onward.moving SET is_writing = true
WHERE role = 'target' AND copy_id = :copy_id AND ended_at IS NULL AND position::text IS NOT DISTINCT FROM :before::text
RETURNING 1;

-- name: end_writing
UPDATE onward.moving SET is_writing = false, position = :after::text::json WHERE role = 'target';

-- name: end_target
UPDATE onward.moving SET ended_at = {now}, position = NULL WHERE role = 'target' AND copy_id = :copy_id AND ended_at IS NULL
RETURNING 1;

-- name: note_end
UPDATE onward.moving SET ended_at = coalesce(ended_at, {now}) WHERE role = 'source' AND copy_id = :copy_id;

-- name: forget_target
DELETE FROM onward.moving WHERE role = 'target' AND copy_id = :copy_id AND ended_at IS NULL RETURNING 1;

-- name: forget_source
DELETE FROM onward.moving WHERE role = 'source' AND copy_id = :copy_id;

-- name: empty_tables
TRUNCATE onward.workflows, onward.journal, onward.mailbox, onward.waiters, onward.step_retries;

-- name: raise_mail_ids
SELECT setval(pg_get_serial_sequence('onward.mailbox', 'id')::regclass, greatest(
    :id::bigint, coalesce(pg_sequence_last_value(pg_get_serial_sequence('onward.mailbox', 'id')::regclass), 0), 1));

-- name: export_workflows
-- By the primary key.
SELECT
    id, type, queue, priority, status, (extract(epoch FROM next_run_at) * 1000000)::bigint, epoch, signals, run,
    attempts, crashes, max_attempts, awaited, (extract(epoch FROM wake_floor) * 1000000)::bigint, divergences,
    diverged_by::text, partition, parent_id, version, code_version,
    (extract(epoch FROM created_at) * 1000000)::bigint, (extract(epoch FROM started_at) * 1000000)::bigint,
    (extract(epoch FROM updated_at) * 1000000)::bigint, (extract(epoch FROM finished_at) * 1000000)::bigint,
    (extract(epoch FROM deadline) * 1000000)::bigint, timeout_us,
    (extract(epoch FROM cancel_requested_at) * 1000000)::bigint, digest, seed, step, waiting_for::text, tags::text,
    progress::text, result::text, error::text, payload::text
FROM onward.workflows WHERE id > :key_one ORDER BY id LIMIT :limit::integer;

-- name: import_workflows
INSERT INTO onward.workflows (
    id, type, queue, priority, status, next_run_at, epoch, signals, run, attempts, crashes, max_attempts, awaited,
    wake_floor, divergences, diverged_by, partition, parent_id, version, code_version, created_at, started_at,
    updated_at, finished_at, deadline, timeout_us, cancel_requested_at, digest, seed, step, waiting_for, tags,
    progress, result, error, payload)
SELECT
    r.id, r.type, r.queue, r.priority, r.status, onward.at(r.next_run_at), r.epoch, r.signals, r.run, r.attempts,
    r.crashes, r.max_attempts, r.awaited, onward.at(r.wake_floor), r.divergences, r.diverged_by::jsonb, r.partition,
    r.parent_id, r.version, r.code_version, onward.at(r.created_at), onward.at(r.started_at), onward.at(r.updated_at),
    onward.at(r.finished_at), onward.at(r.deadline), r.timeout_us, onward.at(r.cancel_requested_at), r.digest, r.seed,
    r.step, r.waiting_for::json, r.tags::json, r.progress::json, r.result::json, r.error::json, r.payload::json
FROM json_to_recordset(:rows) AS r (
    id text, type text, queue text, priority integer, status text, next_run_at bigint, epoch integer, signals integer,
    run integer, attempts integer, crashes integer, max_attempts integer, awaited integer, wake_floor bigint,
    divergences integer, diverged_by text, partition text, parent_id text, version text, code_version text,
    created_at bigint, started_at bigint, updated_at bigint, finished_at bigint, deadline bigint, timeout_us bigint,
    cancel_requested_at bigint, digest text, seed text, step text, waiting_for text, tags text, progress text,
    result text, error text, payload text);

-- name: export_journal
-- By the primary key.
SELECT
    workflow_id, seq, key, kind, struck, tries, (extract(epoch FROM started_at) * 1000000)::bigint,
    (extract(epoch FROM finished_at) * 1000000)::bigint, digest, arguments, result::text, error::text
FROM onward.journal WHERE (workflow_id, seq) > (:key_one, :key_two::integer) ORDER BY workflow_id, seq LIMIT :limit::integer;

-- name: import_journal
INSERT INTO onward.journal (
    workflow_id, seq, key, kind, struck, tries, started_at, finished_at, digest, arguments, result, error)
SELECT
    r.workflow_id, r.seq, r.key, r.kind, r.struck, r.tries, onward.at(r.started_at), onward.at(r.finished_at),
    r.digest, r.arguments, r.result::json, r.error::json
FROM json_to_recordset(:rows) AS r (
    workflow_id text, seq integer, key text, kind text, struck boolean, tries integer, started_at bigint,
    finished_at bigint, digest text, arguments text, result text, error text);

-- name: export_mailbox
-- By the primary key.
SELECT
    id, workflow_id, kind, (extract(epoch FROM created_at) * 1000000)::bigint, name, token, is_read, payload::text,
    error::text
FROM onward.mailbox WHERE id > :key_one::bigint ORDER BY id LIMIT :limit::integer;

-- name: import_mailbox
INSERT INTO onward.mailbox (
    id, workflow_id, kind, created_at, name, token, is_read, payload, error)
SELECT
    r.id, r.workflow_id, r.kind, onward.at(r.created_at), r.name, r.token, r.is_read, r.payload::json, r.error::json
FROM json_to_recordset(:rows) AS r (
    id bigint, workflow_id text, kind text, created_at bigint, name text, token text, is_read boolean, payload text,
    error text);

-- name: export_waiters
-- By the primary key.
SELECT
    target, waiter, (extract(epoch FROM created_at) * 1000000)::bigint
FROM onward.waiters WHERE (target, waiter) > (:key_one, :key_two) ORDER BY target, waiter LIMIT :limit::integer;

-- name: import_waiters
INSERT INTO onward.waiters (
    target, waiter, created_at)
SELECT
    r.target, r.waiter, onward.at(r.created_at)
FROM json_to_recordset(:rows) AS r (
    target text, waiter text, created_at bigint);

-- name: export_step_retries
-- By the primary key.
SELECT
    workflow_id, key, tries, (extract(epoch FROM next_at) * 1000000)::bigint, error::text
FROM onward.step_retries WHERE (workflow_id, key) > (:key_one, :key_two) ORDER BY workflow_id, key LIMIT :limit::integer;

-- name: import_step_retries
INSERT INTO onward.step_retries (
    workflow_id, key, tries, next_at, error)
SELECT
    r.workflow_id, r.key, r.tries, onward.at(r.next_at), r.error::json
FROM json_to_recordset(:rows) AS r (
    workflow_id text, key text, tries integer, next_at bigint, error text);
