-- Taking, finding and giving back rows. The due index (queue, priority, next_run_at, id) is probed once a priority: with
-- `next_run_at` after `priority`, one range over all priorities would walk every future row of the better ones.
-- `diverged_by` is a JSON object: until when each code version that could not replay the row is held back from it.

-- name: due_priorities
-- The priorities of one queue that have a claimable row now. Read without the write lock.
WITH RECURSIVE p (priority) AS (
    SELECT (SELECT min(w.priority) FROM onward_workflows AS w WHERE w.queue = :queue AND w.next_run_at IS NOT NULL)
    UNION ALL
    SELECT (SELECT min(w.priority) FROM onward_workflows AS w
            WHERE w.queue = :queue AND w.next_run_at IS NOT NULL AND w.priority > p.priority)
    FROM p WHERE p.priority IS NOT NULL
)
SELECT json_group_array(p.priority) FROM p
WHERE p.priority IS NOT NULL AND EXISTS (
    SELECT 1 FROM onward_workflows AS w
    WHERE w.queue = :queue AND w.priority = p.priority AND w.next_run_at <= :now
      AND (w.crashes >= 2) = :alone
      AND w.type IN (SELECT value FROM json_each(:types))
      AND (w.version IS NULL OR CAST(w.version AS INTEGER) <= :format)
      AND (w.diverged_by IS NULL OR NOT EXISTS (
          SELECT 1 FROM json_each(w.diverged_by) AS d WHERE d.key = :code_version AND d.value > :now)));

-- name: select_due
-- The rows of one priority as they will be once claimed; none for a worker that is dead or not registered.
SELECT json_group_array(json_array(
    id, type, payload, digest, seed, epoch + 1, signals, attempts, crashes, max_attempts, run, created_at,
    coalesce(started_at, :now), queue, priority, partition, tags, parent_id, coalesce(deadline, :now + timeout_us),
    coalesce(version, :version), coalesce(code_version, :code_version), divergences))
FROM (
    SELECT * FROM onward_workflows AS w
    WHERE w.queue = :queue AND w.priority = :priority AND w.next_run_at <= :now
      AND (w.crashes >= 2) = :alone
      AND w.type IN (SELECT value FROM json_each(:types))
      AND (w.version IS NULL OR CAST(w.version AS INTEGER) <= :format)
      AND (w.diverged_by IS NULL OR NOT EXISTS (
          SELECT 1 FROM json_each(w.diverged_by) AS d WHERE d.key = :code_version AND d.value > :now))
      AND EXISTS (SELECT 1 FROM onward_workers AS k WHERE k.id = :worker AND k.is_dead = 0)
    ORDER BY w.next_run_at, w.id LIMIT :limit);

-- name: select_only
-- The same among given ids, by the primary key.
SELECT json_group_array(json_array(
    id, type, payload, digest, seed, epoch + 1, signals, attempts, crashes, max_attempts, run, created_at,
    coalesce(started_at, :now), queue, priority, partition, tags, parent_id, coalesce(deadline, :now + timeout_us),
    coalesce(version, :version), coalesce(code_version, :code_version), divergences))
FROM (
    SELECT w.* FROM json_each(:only) AS i CROSS JOIN onward_workflows AS w
    WHERE w.id = i.value AND w.queue = :queue AND w.next_run_at <= :now
      AND (w.crashes >= 2) = :alone
      AND w.type IN (SELECT value FROM json_each(:types))
      AND (w.version IS NULL OR CAST(w.version AS INTEGER) <= :format)
      AND (w.diverged_by IS NULL OR NOT EXISTS (
          SELECT 1 FROM json_each(w.diverged_by) AS d WHERE d.key = :code_version AND d.value > :now))
      AND EXISTS (SELECT 1 FROM onward_workers AS k WHERE k.id = :worker AND k.is_dead = 0)
    ORDER BY w.priority, w.next_run_at, w.id LIMIT :limit);

-- name: claim_rows
UPDATE onward_workflows SET
    status = 'running', worker = :worker, epoch = epoch + 1, next_run_at = NULL, waiting_for = NULL, awaited = NULL,
    wake_floor = NULL, started_at = coalesce(started_at, :now), deadline = coalesce(deadline, :now + timeout_us),
    version = coalesce(version, :version), code_version = coalesce(code_version, :code_version), updated_at = :now
WHERE id IN (SELECT value FROM json_each(:ids));

-- name: load_histories
-- By one statement, so from one snapshot, begun after the claim has committed. Primary keys and onward_mailbox_unread.
SELECT json_group_array(json_array(
    w.id, w.signals,
    json((SELECT json_group_array(json_array(
              e.seq, e.key, e.kind, e.finished_at, e.result, e.error, e.digest, e.arguments, e.tries, e.started_at))
          FROM (SELECT * FROM onward_journal AS j WHERE j.workflow_id = w.id AND j.struck = 0 ORDER BY j.seq) AS e)),
    json((SELECT json_group_array(json_array(m.id, m.kind, m.created_at, m.name, m.payload, m.error))
          FROM (SELECT * FROM onward_mailbox AS b WHERE b.workflow_id = w.id AND b.is_read = 0 ORDER BY b.id) AS m)),
    json((SELECT json_group_array(json_array(r.key, r.tries, r.next_at, r.error))
          FROM onward_step_retries AS r WHERE r.workflow_id = w.id)),
    (SELECT coalesce(max(j.seq), 0) FROM onward_journal AS j WHERE j.workflow_id = w.id)))
FROM json_each(:ids) AS i CROSS JOIN onward_workflows AS w WHERE w.id = i.value;

-- name: next_due
-- alone: whether of rows in quarantine, of others, or (null) of all.
WITH RECURSIVE p (queue, priority) AS (
    SELECT q.value, (SELECT min(w.priority) FROM onward_workflows AS w WHERE w.queue = q.value AND w.next_run_at IS NOT NULL)
    FROM json_each(:queues) AS q
    UNION ALL
    SELECT p.queue, (SELECT min(w.priority) FROM onward_workflows AS w
                     WHERE w.queue = p.queue AND w.next_run_at IS NOT NULL AND w.priority > p.priority)
    FROM p WHERE p.priority IS NOT NULL
)
SELECT min((
    SELECT w.next_run_at FROM onward_workflows AS w
    WHERE w.queue = p.queue AND w.priority = p.priority AND w.next_run_at IS NOT NULL
      AND coalesce((w.crashes >= 2) = :alone, true)
      AND w.type IN (SELECT value FROM json_each(:types))
      AND (w.version IS NULL OR CAST(w.version AS INTEGER) <= :format)
      AND (w.diverged_by IS NULL OR w.next_run_at > :now OR NOT EXISTS (
          SELECT 1 FROM json_each(w.diverged_by) AS d WHERE d.key = :code_version AND d.value > :now))
    ORDER BY w.next_run_at, w.id LIMIT 1))
FROM p WHERE p.priority IS NOT NULL;

-- name: next_held_back
-- When the first row that is due, but not yet for this code version, will be. By onward_workflows_diverged (next_run_at): of
-- the diverged rows only those that another version, or a wake, has pulled forward.
SELECT min(d.value) FROM onward_workflows AS w CROSS JOIN json_each(w.diverged_by) AS d
WHERE w.diverged_by IS NOT NULL AND w.next_run_at <= :now AND d.key = :code_version AND d.value > :now
  AND +w.queue IN (SELECT value FROM json_each(:queues))
  AND coalesce((w.crashes >= 2) = :alone, true)
  AND w.type IN (SELECT value FROM json_each(:types)) AND (w.version IS NULL OR CAST(w.version AS INTEGER) <= :format);

-- name: next_due_only
SELECT min(CASE WHEN w.diverged_by IS NULL OR w.next_run_at > :now THEN w.next_run_at ELSE max(w.next_run_at, coalesce((
    SELECT d.value FROM json_each(w.diverged_by) AS d WHERE d.key = :code_version AND d.value > :now), 0)) END)
FROM json_each(:only) AS i CROSS JOIN onward_workflows AS w
WHERE w.id = i.value AND w.next_run_at IS NOT NULL AND w.queue IN (SELECT value FROM json_each(:queues))
  AND coalesce((w.crashes >= 2) = :alone, true)
  AND w.type IN (SELECT value FROM json_each(:types)) AND (w.version IS NULL OR CAST(w.version AS INTEGER) <= :format);

-- name: not_held
-- Running rows of a worker other than the (id, epoch) it holds, by the index of held rows.
SELECT json_group_array(w.id) FROM onward_workflows AS w
WHERE w.status = 'running' AND w.worker = :worker
  AND (w.id, w.epoch) NOT IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:held));

-- name: give_back
-- The epoch rises, so that a write of the former owner that is still on its way can never be taken for applied.
UPDATE onward_workflows SET
    status = 'pending', worker = NULL, epoch = epoch + 1, next_run_at = :now, crashes = crashes + :crashes, updated_at = :now
WHERE id IN (SELECT value FROM json_each(:ids)) AND status = 'running';

-- name: is_any_diverged
SELECT EXISTS (
    SELECT 1 FROM onward_workflows
    WHERE diverged_by IS NOT NULL AND status = 'pending' AND next_run_at > :now
      AND NOT EXISTS (SELECT 1 FROM json_each(diverged_by) AS d WHERE d.key = :code_version));

-- name: adopt_diverged
UPDATE onward_workflows SET next_run_at = :now, updated_at = :now
WHERE diverged_by IS NOT NULL AND status = 'pending' AND next_run_at > :now
  AND NOT EXISTS (SELECT 1 FROM json_each(diverged_by) AS d WHERE d.key = :code_version);
