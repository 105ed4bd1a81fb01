-- Starting workflows. Inside BEGIN IMMEDIATE, so that what the look says is still so at the insert.

-- name: find_starts
SELECT json_group_array(json_array(w.id, w.type, w.digest, w.seed, w.parent_id, w.status))
FROM json_each(:ids) AS i CROSS JOIN onward_workflows AS w WHERE w.id = i.value;

-- name: insert_workflows
-- kinds: [type, queue, priority, partition, tags, max_attempts, delay, run_at, time-out, parent]
-- rows: [number of the kind, id, payload, digest, seed], in the order in which they are inserted
WITH k AS MATERIALIZED (
    SELECT key AS number,
           json_extract(value, '$[0]') AS type, json_extract(value, '$[1]') AS queue, json_extract(value, '$[2]') AS priority,
           json_extract(value, '$[3]') AS partition, json_extract(value, '$[4]') AS tags,
           json_extract(value, '$[5]') AS max_attempts,
           coalesce(json_extract(value, '$[7]'), :now + json_extract(value, '$[6]')) AS due_at,
           json_extract(value, '$[8]') AS timeout_us, json_extract(value, '$[9]') AS parent_id
    FROM json_each(:kinds)
)
INSERT INTO onward_workflows (
    id, type, payload, digest, seed, queue, priority, partition, tags, max_attempts, next_run_at, timeout_us, parent_id,
    status, created_at, updated_at)
SELECT json_extract(r.value, '$[1]'), k.type, json_extract(r.value, '$[2]'), json_extract(r.value, '$[3]'),
       json_extract(r.value, '$[4]'), k.queue, k.priority, k.partition, k.tags, k.max_attempts, k.due_at, k.timeout_us,
       k.parent_id, 'pending', :now, :now
FROM json_each(:rows) AS r CROSS JOIN k ON k.number = json_extract(r.value, '$[0]');

-- name: insert_waiters
INSERT INTO onward_waiters (target, waiter, created_at)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), :now FROM json_each(:rows) WHERE true
ON CONFLICT DO NOTHING;

-- name: deliver_known_ends
-- [waiter, target]: the target has ended already; its end goes into the waiter's mailbox unless it lies there unread.
INSERT INTO onward_mailbox (workflow_id, kind, name, payload, error, created_at)
SELECT json_extract(r.value, '$[0]'), 'child', w.id, w.result, w.error, :now
FROM json_each(:rows) AS r CROSS JOIN onward_workflows AS w
WHERE w.id = json_extract(r.value, '$[1]')
  AND NOT EXISTS (SELECT 1 FROM onward_mailbox AS m
                  WHERE m.workflow_id = json_extract(r.value, '$[0]') AND m.is_read = 0 AND m.kind = 'child' AND m.name = w.id)
RETURNING workflow_id;
