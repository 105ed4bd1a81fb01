-- A move to another database: what `onward copy` reads and writes. The columns are those of _store/transfer.py, in its order.

-- name: read_moves
SELECT json_group_array(json_array(m.role, m.copy_id, m.url, m.began_at, m.ended_at, m.position)) FROM onward_moving AS m;

-- name: read_refusal
-- (role, URL) while writes are refused.
SELECT role, url FROM onward_moving WHERE role = 'source' OR ended_at IS NULL;

-- name: look_around
-- [unfinished, running, workers whose lease runs, highest id of a mail, bytes]
SELECT json_array(
    (SELECT count(*) FROM onward_workflows WHERE status IN ('pending', 'running', 'waiting')),
    (SELECT count(*) FROM onward_workflows WHERE status = 'running'),
    (SELECT count(*) FROM onward_workers WHERE is_dead = 0 AND expires_at > :now),
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'onward_mailbox'), 0),
    (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size));

-- name: count_rows
SELECT json_object(
    'workflows', (SELECT count(*) FROM onward_workflows), 'journal', (SELECT count(*) FROM onward_journal),
    'mailbox', (SELECT count(*) FROM onward_mailbox), 'waiters', (SELECT count(*) FROM onward_waiters),
    'step_retries', (SELECT count(*) FROM onward_step_retries));

-- name: is_empty
SELECT NOT EXISTS (SELECT 1 FROM onward_workflows) AND NOT EXISTS (SELECT 1 FROM onward_journal)
   AND NOT EXISTS (SELECT 1 FROM onward_mailbox) AND NOT EXISTS (SELECT 1 FROM onward_waiters)
   AND NOT EXISTS (SELECT 1 FROM onward_step_retries);

-- name: mark_target
-- A copy into this file that ended, and all of whose workflows are gone again, is forgotten.
INSERT INTO onward_moving (role, copy_id, url, began_at) VALUES ('target', :copy_id, :url, :now)
ON CONFLICT (role) DO UPDATE SET
    copy_id = excluded.copy_id, url = excluded.url, began_at = excluded.began_at, ended_at = NULL, position = NULL
WHERE onward_moving.ended_at IS NOT NULL;

-- name: mark_source
INSERT INTO onward_moving (role, copy_id, url, began_at) VALUES ('source', :copy_id, :url, :now);

-- name: end_executions
-- What runs is due now; what waits or sleeps goes on with that. Rows that never ran keep epoch 0: nobody can hold them.
UPDATE onward_workflows SET
    epoch = epoch + 1, worker = NULL,
    updated_at = CASE WHEN status = 'running' THEN :now ELSE updated_at END,
    next_run_at = CASE WHEN status = 'running' THEN :now ELSE next_run_at END,
    status = CASE WHEN status = 'running' THEN 'pending' ELSE status END
WHERE epoch > 0 AND status IN ('pending', 'running', 'waiting');

-- name: begun_prunings
-- All that is left of trees whose deletion has begun.
WITH RECURSIVE t (id) AS (
    SELECT root FROM onward_prunings WHERE position IS NOT NULL
    UNION
    SELECT w.id FROM t CROSS JOIN onward_workflows AS w WHERE w.parent_id = t.id
)
SELECT json_group_array(id) FROM t;

-- name: forget_prunings
DELETE FROM onward_prunings;

-- name: begin_writing
UPDATE onward_moving SET is_writing = 1
WHERE role = 'target' AND copy_id = :copy_id AND ended_at IS NULL AND position IS :before;

-- name: end_writing
UPDATE onward_moving SET is_writing = 0, position = :after WHERE role = 'target';

-- name: end_target
UPDATE onward_moving SET ended_at = :now, position = NULL WHERE role = 'target' AND copy_id = :copy_id AND ended_at IS NULL;

-- name: note_end
UPDATE onward_moving SET ended_at = coalesce(ended_at, :now) WHERE role = 'source' AND copy_id = :copy_id;

-- name: forget_target
DELETE FROM onward_moving WHERE role = 'target' AND copy_id = :copy_id AND ended_at IS NULL;

-- name: forget_source
DELETE FROM onward_moving WHERE role = 'source' AND copy_id = :copy_id;

-- name: raise_mail_ids
UPDATE sqlite_sequence SET seq = max(seq, :id) WHERE name = 'onward_mailbox';

-- name: begin_mail_ids
INSERT INTO sqlite_sequence (name, seq) VALUES ('onward_mailbox', :id);

-- name: export_workflows
-- By the primary key.
SELECT
    id, type, queue, priority, status, next_run_at, epoch, signals, run, attempts, crashes, max_attempts, awaited,
    wake_floor, divergences, diverged_by, partition, parent_id, version, code_version, created_at, started_at,
    updated_at, finished_at, deadline, timeout_us, cancel_requested_at, digest, seed, step, waiting_for, tags,
    progress, result, error, payload
FROM onward_workflows WHERE id > :key_one ORDER BY id LIMIT :limit;

-- name: import_workflows
INSERT INTO onward_workflows (
    id, type, queue, priority, status, next_run_at, epoch, signals, run, attempts, crashes, max_attempts, awaited,
    wake_floor, divergences, diverged_by, partition, parent_id, version, code_version, created_at, started_at,
    updated_at, finished_at, deadline, timeout_us, cancel_requested_at, digest, seed, step, waiting_for, tags,
    progress, result, error, payload)
VALUES (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: export_journal
-- By the primary key.
SELECT
    workflow_id, seq, key, kind, struck, tries, started_at, finished_at, digest, arguments, result, error
FROM onward_journal WHERE (workflow_id, seq) > (:key_one, :key_two) ORDER BY workflow_id, seq LIMIT :limit;

-- name: import_journal
INSERT INTO onward_journal (
    workflow_id, seq, key, kind, struck, tries, started_at, finished_at, digest, arguments, result, error)
VALUES (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: export_mailbox
-- By the primary key.
SELECT
    id, workflow_id, kind, created_at, name, token, is_read, payload, error
FROM onward_mailbox WHERE id > :key_one ORDER BY id LIMIT :limit;

-- name: import_mailbox
INSERT INTO onward_mailbox (
    id, workflow_id, kind, created_at, name, token, is_read, payload, error)
VALUES (
    ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: export_waiters
-- By the primary key.
SELECT
    target, waiter, created_at
FROM onward_waiters WHERE (target, waiter) > (:key_one, :key_two) ORDER BY target, waiter LIMIT :limit;

-- name: import_waiters
INSERT INTO onward_waiters (
    target, waiter, created_at)
VALUES (
    ?, ?, ?);

-- name: export_step_retries
-- By the primary key.
SELECT
    workflow_id, key, tries, next_at, error
FROM onward_step_retries WHERE (workflow_id, key) > (:key_one, :key_two) ORDER BY workflow_id, key LIMIT :limit;

-- name: import_step_retries
INSERT INTO onward_step_retries (
    workflow_id, key, tries, next_at, error)
VALUES (
    ?, ?, ?, ?, ?);

-- name: empty_workflows
DELETE FROM onward_workflows;

-- name: empty_journal
DELETE FROM onward_journal;

-- name: empty_mailbox
DELETE FROM onward_mailbox;

-- name: empty_waiters
DELETE FROM onward_waiters;

-- name: empty_step_retries
DELETE FROM onward_step_retries;
