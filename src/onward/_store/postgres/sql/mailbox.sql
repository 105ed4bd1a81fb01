-- Mail and wakes. Mail is found by mailbox_unread (workflow_id, id) or mailbox_token; it is inserted under the lock of its
-- workflow's row, so that its ids rise in commit order within one workflow.

-- name: fragment_wake
-- p [id, signals, ends, urgent, forced]. The count rises unconditionally. Asleep is `waiting`, or `pending` with waiting_for.
-- Ends of children alone wake before the floor only as the last awaited one or a failed one (urgent); forced (a cancel, an
-- operator) also pulls forward what is delayed or backing off.
signals = w.signals + p.signals,
awaited = w.awaited - p.ends,
status = CASE WHEN w.status = 'waiting' AND (p.urgent OR p.forced OR coalesce(w.awaited - p.ends <= 0, false)
                                             OR w.wake_floor IS NULL OR w.wake_floor <= {now})
              THEN 'pending' ELSE w.status END,
next_run_at = CASE
    WHEN w.status = 'running' THEN NULL
    WHEN NOT p.forced AND w.status = 'pending' AND w.waiting_for IS NULL THEN w.next_run_at
    WHEN p.urgent OR p.forced OR coalesce(w.awaited - p.ends <= 0, false) OR w.wake_floor IS NULL OR w.wake_floor <= {now}
    THEN least(w.next_run_at, {now})
    ELSE least(w.next_run_at, w.wake_floor) END,
updated_at = {now}

-- name: mark_read
-- The row stays until the workflow ends, for its token.
UPDATE onward.mailbox AS m SET is_read = true, payload = NULL, error = NULL
FROM json_to_recordset(:rows) AS r (w text, i bigint) WHERE m.id = ANY (ARRAY[r.i]) AND m.workflow_id = ANY (ARRAY[r.w]);

-- name: deliver_signals
-- In order; a token that is known was delivered before, a workflow that has ended gets none.
WITH mailed AS (
    INSERT INTO onward.mailbox (workflow_id, kind, name, payload, token, created_at)
    SELECT r.id, 'signal', r.name, r.payload::json, r.token, {now}
    FROM json_to_recordset(:rows) AS r (id text, name text, payload text, token text)
    JOIN onward.workflows AS w ON w.id = ANY (ARRAY[r.id]) WHERE w.status IN ('pending', 'running', 'waiting')
    ON CONFLICT (workflow_id, token) DO NOTHING
    RETURNING workflow_id
), p AS (
    SELECT m.workflow_id AS id, count(*)::integer AS signals, 0 AS ends, true AS urgent, false AS forced
    FROM mailed AS m GROUP BY m.workflow_id
)
UPDATE onward.workflows AS w SET {wake} FROM p WHERE w.id = ANY (ARRAY[p.id]);

-- name: look_at_targets
-- [id, status, epoch]
SELECT coalesce(json_agg(json_build_array(w.id, w.status, w.epoch)), '[]')
FROM json_array_elements_text(:ids) AS i (id) JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.id]);

-- name: read_mail
-- [id, last mail id known] → [id, epoch, signals, newer mail]; one statement, so one snapshot.
SELECT coalesce(json_agg(json_build_array(w.id, w.epoch, w.signals, (
    SELECT coalesce(json_agg(json_build_array(
        m.id, m.kind, onward.us(m.created_at), m.name, m.payload::text, m.error::text) ORDER BY m.id), '[]')
    FROM onward.mailbox AS m WHERE m.workflow_id = w.id AND NOT m.is_read AND m.id > (i.value ->> 1)::bigint))), '[]')
FROM json_array_elements(:wanted) AS i (value) JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.value ->> 0]);

-- name: read_signals
-- By the index of held rows.
SELECT coalesce(json_object_agg(w.id, w.signals), '{}') FROM onward.workflows AS w
WHERE w.status = 'running' AND w.worker = :worker;

-- name: retry_finished
-- An operator's retry of failed or cancelled workflows. Their next claim sets a new deadline.
UPDATE onward.workflows AS w SET
    status = 'pending', next_run_at = {now}, attempts = 0, crashes = 0, result = NULL, error = NULL, finished_at = NULL,
    cancel_requested_at = NULL, deadline = NULL, updated_at = {now}
FROM json_array_elements_text(:ids) AS i (id) WHERE w.id = ANY (ARRAY[i.id]) AND w.status IN ('failed', 'cancelled');

-- name: strike_from
-- What is no longer wanted of the history: from the entry that made the failure certain, else from the cancellation.
UPDATE onward.journal AS j SET struck = true
FROM (
    SELECT w.id, coalesce(
        (w.error ->> 'seq')::integer,
        CASE WHEN w.status = 'cancelled' OR (w.error ->> 'timed_out')::boolean THEN (
            SELECT min(e.seq) FROM onward.journal AS e
            WHERE e.workflow_id = w.id AND NOT e.struck AND e.kind IN ('cancel', 'timeout')) END) AS first
    FROM json_array_elements_text(:ids) AS i (id) JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.id])
    WHERE w.status IN ('failed', 'cancelled')
) AS p
WHERE j.workflow_id = ANY (ARRAY[p.id]) AND NOT j.struck AND j.seq >= p.first;

-- name: hasten_retries
UPDATE onward.step_retries AS r SET next_at = least(r.next_at, {now})
FROM json_array_elements_text(:ids) AS i (id) JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.id])
WHERE r.workflow_id = ANY (ARRAY[w.id]) AND w.status IN ('pending', 'waiting');

-- name: hasten_rows
-- An operator's retry of what is not running: it runs now, also where this code could not replay it.
WITH p AS MATERIALIZED (
    SELECT DISTINCT i.id, 1 AS signals, 0 AS ends, false AS urgent, true AS forced
    FROM json_array_elements_text(:ids) AS i (id) ORDER BY i.id
)
UPDATE onward.workflows AS w SET {wake}, diverged_by = (
    SELECT jsonb_object_agg(d.key, least(d.value::bigint, onward.us({now}))) FROM jsonb_each_text(w.diverged_by) AS d)
FROM p WHERE w.id = ANY (ARRAY[p.id]) AND w.status IN ('pending', 'waiting');
