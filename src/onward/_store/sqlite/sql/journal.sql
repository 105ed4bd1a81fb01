-- Writes of executions: fences, entries, row updates. All run inside BEGIN IMMEDIATE, so the whole file is locked; each is one
-- statement for the whole batch, fed by one JSON parameter (Python's sqlite3 gives up the GIL at each row otherwise).
-- Rows of `onward_workflows` and `onward_journal` are found by their primary keys.

-- name: look_at_fences
-- Fences [id, worker, epoch, is it ending]; answers only the ones that need attention:
-- [index, 2 held | 1 given back under this epoch | 0 lost, parent, signals, has waiters, has retries].
WITH f AS MATERIALIZED (
    SELECT key AS n,
           json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS worker,
           json_extract(value, '$[2]') AS epoch, json_extract(value, '$[3]') AS is_ending
    FROM json_each(:fences)
)
SELECT json_group_array(json_array(
    f.n,
    CASE WHEN w.epoch IS NOT f.epoch THEN 0 WHEN w.worker IS f.worker THEN 2 WHEN w.worker IS NULL THEN 1 ELSE 0 END,
    w.parent_id,
    coalesce(w.signals, 0),
    EXISTS (SELECT 1 FROM onward_waiters AS t WHERE t.target = f.id),
    EXISTS (SELECT 1 FROM onward_step_retries AS r WHERE r.workflow_id = f.id)
))
FROM f LEFT JOIN onward_workflows AS w ON w.id = f.id
WHERE w.epoch IS NOT f.epoch OR w.worker IS NOT f.worker
   OR (f.is_ending AND (
        w.signals > 0 OR w.parent_id IS NOT NULL
        OR EXISTS (SELECT 1 FROM onward_waiters AS t WHERE t.target = f.id)
        OR EXISTS (SELECT 1 FROM onward_step_retries AS r WHERE r.workflow_id = f.id)));

-- name: insert_entries
INSERT INTO onward_journal
    (workflow_id, seq, key, kind, finished_at, result, error, digest, arguments, tries, started_at)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]'),
       json_extract(value, '$[4]'), json_extract(value, '$[5]'), json_extract(value, '$[6]'), json_extract(value, '$[7]'),
       json_extract(value, '$[8]'), json_extract(value, '$[9]'), json_extract(value, '$[10]')
FROM json_each(:entries);

-- name: read_entries
-- After an unknown commit: what is there under these (workflow, seq).
SELECT json_group_array(json_array(
    j.workflow_id, j.seq, j.key, j.kind, j.finished_at, j.result, j.error, j.digest, j.arguments, j.tries, j.started_at))
FROM json_each(:entries) AS e CROSS JOIN onward_journal AS j
WHERE j.workflow_id = json_extract(e.value, '$[0]') AND j.seq = json_extract(e.value, '$[1]');

-- name: strike_entries
UPDATE onward_journal SET struck = 1
WHERE (workflow_id, seq) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:entries));

-- name: note_progress
-- [id, step, progress, reset counters]; a row whose counters are 0 already is not written for their sake.
UPDATE onward_workflows AS w SET
    step = coalesce(p.step, w.step),
    progress = coalesce(p.progress, w.progress),
    attempts = CASE WHEN p.reset THEN 0 ELSE w.attempts END,
    crashes = CASE WHEN p.reset THEN 0 ELSE w.crashes END,
    divergences = CASE WHEN p.reset THEN 0 ELSE w.divergences END,
    diverged_by = CASE WHEN p.reset THEN NULL ELSE w.diverged_by END,
    updated_at = :now
FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS step,
             json_extract(value, '$[2]') AS progress, json_extract(value, '$[3]') AS reset
      FROM json_each(:rows)) AS p
WHERE w.id = p.id
  AND (p.progress IS NOT NULL OR p.step IS NOT NULL OR w.attempts > 0 OR w.crashes > 0 OR w.divergences > 0);

-- name: park_rows
-- [id, seen signals, next_run_at, is waiting, waiting_for, awaited, wake_floor]: a signal that came since is not slept through.
UPDATE onward_workflows AS w SET
    status = CASE WHEN w.signals = p.seen AND p.is_waiting THEN 'waiting' ELSE 'pending' END,
    next_run_at = CASE WHEN w.signals <> p.seen THEN :now WHEN p.is_waiting THEN p.next_run_at
                       ELSE coalesce(p.next_run_at, :now) END,
    worker = NULL, waiting_for = p.waiting_for, awaited = p.awaited, wake_floor = p.wake_floor,
    divergences = 0, diverged_by = NULL, updated_at = :now
FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS seen, json_extract(value, '$[2]') AS next_run_at,
             json_extract(value, '$[3]') AS is_waiting, json_extract(value, '$[4]') AS waiting_for,
             json_extract(value, '$[5]') AS awaited, json_extract(value, '$[6]') AS wake_floor
      FROM json_each(:rows)) AS p
WHERE w.id = p.id;

-- name: fail_attempts
-- [id, error, back-off]: a cancel that came since does not wait for the back-off (index onward_mailbox_unread).
UPDATE onward_workflows AS w SET
    status = 'pending', worker = NULL, attempts = w.attempts + 1, error = p.error,
    next_run_at = :now + CASE WHEN EXISTS (
        SELECT 1 FROM onward_mailbox AS m WHERE m.workflow_id = p.id AND m.is_read = 0 AND m.kind = 'cancel'
    ) THEN 0 ELSE p.backoff END,
    divergences = 0, diverged_by = NULL, updated_at = :now
FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS error, json_extract(value, '$[2]') AS backoff
      FROM json_each(:rows)) AS p
WHERE w.id = p.id;

-- name: release_rows
-- [id, delay, error, diverged_by]: the code versions that diverged are kept, each with the end of its back-off, as a JSON
-- object until the history is accepted.
UPDATE onward_workflows AS w SET
    status = 'pending', worker = NULL, next_run_at = :now + p.delay, error = coalesce(p.error, w.error),
    divergences = w.divergences + (p.diverged_by IS NOT NULL),
    diverged_by = CASE
        WHEN p.diverged_by IS NULL THEN w.diverged_by
        ELSE json_patch(coalesce(w.diverged_by, '{}'), json_object(p.diverged_by, :now + p.delay)) END,
    updated_at = :now
FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS delay,
             json_extract(value, '$[2]') AS error, json_extract(value, '$[3]') AS diverged_by
      FROM json_each(:rows)) AS p
WHERE w.id = p.id;

-- name: upsert_retries
INSERT INTO onward_step_retries (workflow_id, key, tries, next_at, error)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]')
FROM json_each(:rows) WHERE true
ON CONFLICT (workflow_id, key) DO UPDATE SET tries = excluded.tries, next_at = excluded.next_at, error = excluded.error;

-- name: delete_retries
DELETE FROM onward_step_retries
WHERE (workflow_id, key) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:rows));

-- name: finish_rows
-- [id, status, result, error, spends an attempt]
UPDATE onward_workflows AS w SET
    status = p.status, result = p.result, error = p.error, attempts = w.attempts + p.spends, worker = NULL,
    next_run_at = NULL, waiting_for = NULL, awaited = NULL, wake_floor = NULL, divergences = 0, diverged_by = NULL,
    updated_at = :now, finished_at = :now
FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS status,
             json_extract(value, '$[2]') AS result, json_extract(value, '$[3]') AS error,
             json_extract(value, '$[4]') AS spends
      FROM json_each(:rows)) AS p
WHERE w.id = p.id;

-- name: delete_mail_of
DELETE FROM onward_mailbox WHERE workflow_id IN (SELECT value FROM json_each(:ids));

-- name: delete_retries_of
DELETE FROM onward_step_retries WHERE workflow_id IN (SELECT value FROM json_each(:ids));

-- name: read_waiters
SELECT json_group_array(json_array(t.target, t.waiter))
FROM json_each(:ids) AS i CROSS JOIN onward_waiters AS t WHERE t.target = i.value;

-- name: delete_waiters_of
DELETE FROM onward_waiters WHERE target IN (SELECT value FROM json_each(:ids));

-- name: look_at_endings
-- For rows that end without a fence (cancelled before their first claim, crashed too often): as in look_at_fences.
SELECT json_group_array(json_array(
    w.id, w.parent_id, w.signals,
    EXISTS (SELECT 1 FROM onward_waiters AS t WHERE t.target = w.id),
    EXISTS (SELECT 1 FROM onward_step_retries AS r WHERE r.workflow_id = w.id)))
FROM json_each(:ids) AS i CROSS JOIN onward_workflows AS w WHERE w.id = i.value;
