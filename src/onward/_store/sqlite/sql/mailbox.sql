-- Mail and wakes. Writes run inside BEGIN IMMEDIATE; mail is found by onward_mailbox_unread (workflow_id, id) or by token.

-- name: mark_read
-- [workflow, mail id]: the row stays until the workflow ends, for its token.
UPDATE onward_mailbox SET is_read = 1, payload = NULL, error = NULL
WHERE id IN (SELECT json_extract(value, '$[1]') FROM json_each(:rows))
  AND (workflow_id, id) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:rows));

-- name: insert_mail
-- [workflow, kind, name, payload, error, token], in order; a workflow that has ended gets none.
INSERT INTO onward_mailbox (workflow_id, kind, name, payload, error, token, created_at)
SELECT m.id, m.kind, m.name, m.payload, m.error, m.token, :now
FROM (SELECT key AS n, json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS kind, json_extract(value, '$[2]') AS name,
             json_extract(value, '$[3]') AS payload, json_extract(value, '$[4]') AS error, json_extract(value, '$[5]') AS token
      FROM json_each(:rows)) AS m
CROSS JOIN onward_workflows AS w
WHERE w.id = m.id AND w.status IN ('pending', 'running', 'waiting')
ORDER BY m.n;

-- name: wake_rows
-- [id, signals, ends, urgent, forced]. The count rises unconditionally. Asleep is `waiting`, or `pending` with waiting_for.
-- Ends of children alone wake before the floor only as the last awaited one or a failed one (urgent); forced (a cancel, an
-- operator) also pulls forward what is delayed or backing off.
UPDATE onward_workflows AS w SET
    signals = w.signals + p.signals,
    awaited = w.awaited - p.ends,
    status = CASE WHEN w.status = 'waiting' AND (p.urgent OR p.forced OR coalesce(w.awaited - p.ends <= 0, 0)
                                                 OR coalesce(w.wake_floor, 0) <= :now)
                  THEN 'pending' ELSE w.status END,
    next_run_at = CASE
        WHEN w.status = 'running' THEN NULL
        WHEN NOT p.forced AND w.status = 'pending' AND w.waiting_for IS NULL THEN w.next_run_at
        WHEN p.urgent OR p.forced OR coalesce(w.awaited - p.ends <= 0, 0) OR coalesce(w.wake_floor, 0) <= :now
        THEN min(coalesce(w.next_run_at, :now), :now)
        ELSE min(coalesce(w.next_run_at, w.wake_floor), w.wake_floor) END,
    updated_at = :now
FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS signals, json_extract(value, '$[2]') AS ends,
             json_extract(value, '$[3]') AS urgent, json_extract(value, '$[4]') AS forced
      FROM json_each(:rows)) AS p
WHERE w.id = p.id AND w.status IN ('pending', 'running', 'waiting');

-- name: look_at_targets
-- [id, status, epoch, is cancel requested]
SELECT json_group_array(json_array(w.id, w.status, w.epoch, w.cancel_requested_at IS NOT NULL))
FROM json_each(:ids) AS i CROSS JOIN onward_workflows AS w WHERE w.id = i.value;

-- name: known_tokens
-- [workflow, token] → those that were delivered before
SELECT json_group_array(json_array(m.workflow_id, m.token))
FROM json_each(:rows) AS r CROSS JOIN onward_mailbox AS m
WHERE m.workflow_id = json_extract(r.value, '$[0]') AND m.token = json_extract(r.value, '$[1]');

-- name: living_children
-- By onward_workflows_children.
SELECT json_group_array(c.id) FROM (
    SELECT w.id FROM json_each(:ids) AS i CROSS JOIN onward_workflows AS w
    WHERE w.parent_id = i.value AND w.status NOT IN ('completed', 'failed', 'cancelled') ORDER BY w.id) AS c;

-- name: request_cancel
UPDATE onward_workflows SET cancel_requested_at = :now WHERE id IN (SELECT value FROM json_each(:ids));

-- name: read_mail
-- [id, last mail id known] → [id, epoch, signals, newer mail]; one statement, so one snapshot.
SELECT json_group_array(json_array(w.id, w.epoch, w.signals, json((
    SELECT json_group_array(json_array(m.id, m.kind, m.created_at, m.name, m.payload, m.error)) FROM (
        SELECT * FROM onward_mailbox AS b
        WHERE b.workflow_id = w.id AND b.is_read = 0 AND b.id > json_extract(i.value, '$[1]') ORDER BY b.id) AS m))))
FROM json_each(:wanted) AS i CROSS JOIN onward_workflows AS w WHERE w.id = json_extract(i.value, '$[0]');

-- name: read_signals
-- By the index of held rows.
SELECT json_group_object(id, signals) FROM onward_workflows WHERE status = 'running' AND worker = :worker;

-- name: being_pruned
-- Of these: what stands in a tree that is marked, up the parents by primary key.
WITH RECURSIVE up (id, ancestor) AS (
    SELECT value, value FROM json_each(:ids)
    UNION
    SELECT up.id, w.parent_id FROM up CROSS JOIN onward_workflows AS w WHERE w.id = up.ancestor AND w.parent_id IS NOT NULL)
SELECT json_group_array(DISTINCT up.id) FROM up CROSS JOIN onward_prunings AS p WHERE p.root = up.ancestor;

-- name: retry_finished
-- An operator's retry of one failed or cancelled workflow. Its next claim sets a new deadline.
UPDATE onward_workflows SET
    status = 'pending', next_run_at = :now, attempts = 0, crashes = 0, result = NULL, error = NULL, finished_at = NULL,
    cancel_requested_at = NULL, deadline = NULL, updated_at = :now
WHERE id = :id;

-- name: strike_from
-- What is no longer wanted of the history: from the entry that made the failure certain, else from the cancellation.
UPDATE onward_journal SET struck = 1
WHERE workflow_id = :id AND struck = 0 AND seq >= (
    SELECT coalesce(
        CASE WHEN json_valid(w.error) THEN json_extract(w.error, '$.seq') END,
        CASE WHEN w.status = 'cancelled' OR (json_valid(w.error) AND json_extract(w.error, '$.timed_out')) THEN (
            SELECT min(j.seq) FROM onward_journal AS j
            WHERE j.workflow_id = :id AND j.struck = 0 AND j.kind IN ('cancel', 'timeout')) END)
    FROM onward_workflows AS w WHERE w.id = :id);

-- name: hasten_retries
UPDATE onward_step_retries SET next_at = min(next_at, :now) WHERE workflow_id = :id;

-- name: hasten_diverged
-- An operator's retry: code that could not replay the row may try at once.
UPDATE onward_workflows
SET diverged_by = (SELECT json_group_object(d.key, min(d.value, :now)) FROM json_each(onward_workflows.diverged_by) AS d)
WHERE id = :id AND diverged_by IS NOT NULL;
