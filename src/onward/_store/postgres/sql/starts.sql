-- Starting workflows.

-- name: insert_workflows
-- Sorted by id; a start whose id exists inserts nothing. Waits (for lock_timeout at most) where another transaction has started
-- the same id and not yet committed.
INSERT INTO onward.workflows (
    id, type, payload, digest, seed, queue, priority, partition, tags, max_attempts, next_run_at, timeout_us, parent_id,
    status, created_at, updated_at)
SELECT n.id, n.type, n.payload::json, n.digest, n.seed, n.queue, n.priority, n.partition, n.tags::json, n.max_attempts,
       coalesce(onward.at(n.run_at), {now} + n.delay_us * interval '1 microsecond'), n.timeout_us, n.parent_id,
       'pending', {now}, {now}
FROM json_to_recordset(:rows) AS n (
    id text, type text, payload text, digest text, seed text, queue text, priority integer, partition text, tags text,
    max_attempts integer, delay_us bigint, run_at bigint, timeout_us bigint, parent_id text)
ON CONFLICT (id) DO NOTHING;

-- name: fragment_start_rows
-- Columns that many rows share come once for each kind of row, the others by row. No join: rows keep their order.
INSERT INTO onward.workflows (
    id, type, payload, digest, seed, queue, priority, partition, tags, max_attempts, next_run_at, timeout_us,
    status, created_at, updated_at)
SELECT n.id, (:types::text[])[n.kind], n.payload::json, n.digest, n.seed, (:queues::text[])[n.kind],
       (:priorities::integer[])[n.kind], (:partitions::text[])[n.kind], ((:tags::text[])[n.kind])::json,
       (:max_attempts::integer[])[n.kind],
       coalesce(onward.at((:run_at::bigint[])[n.kind]), n.now + (:delays::bigint[])[n.kind] * interval '1 microsecond'),
       (:timeouts::bigint[])[n.kind], 'pending', n.now, n.now
FROM (SELECT unnest(:kinds::integer[]) AS kind, unnest(:ids::text[]) AS id, unnest(:payloads::text[]) AS payload,
             unnest(:digests::text[]) AS digest, unnest(:seeds::text[]) AS seed, t.now
      FROM (SELECT {now} AS now OFFSET 0) AS t) AS n

-- name: insert_new_starts
-- [rows, time]. Starts whose ids were made for them: sorted by id; one that is there after all is an error.
WITH made AS ({start_rows} RETURNING 1) SELECT json_build_array((SELECT count(*) FROM made), onward.us({now}));

-- name: insert_starts
-- [rows, time]. Other starts: as `insert_workflows`. Only where it says fewer rows than it was given is there anything to find.
WITH made AS ({start_rows} ON CONFLICT (id) DO NOTHING RETURNING 1)
SELECT json_build_array((SELECT count(*) FROM made), onward.us({now}));

-- name: find_starts
-- [id, type, digest, seed, parent, status, arguments], by a statement begun after the insert. The arguments of those that SQL has
-- started only (`onward.start`), whose digest says nothing here.
SELECT coalesce(json_agg(json_build_array(w.id, w.type, w.digest, w.seed, w.parent_id, w.status,
    CASE WHEN w.digest LIKE 'sql:%' THEN w.payload::text END)), '[]')
FROM json_array_elements_text(:ids) AS i (id) JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.id]);

-- name: lock_targets
-- A workflow to be watched is locked before anyone looks whether it has ended: also the one that came between the first lock and
-- the insert.
SELECT w.id FROM json_to_recordset(:rows) AS r (target text, waiter text)
JOIN onward.workflows AS w ON w.id = ANY (ARRAY[r.target]) ORDER BY w.id FOR UPDATE OF w;

-- name: fragment_same_call
w.type = r.type AND (w.digest = r.digest OR (w.digest LIKE 'sql:%' AND onward.same_arguments(w.payload, r.payload::json)))

-- name: insert_waiters
-- [target, waiter, type, digest]: those that are no children of the waiter and have not ended.
INSERT INTO onward.waiters (target, waiter, created_at)
SELECT DISTINCT r.target, r.waiter, {now}
FROM json_to_recordset(:rows) AS r (target text, waiter text, type text, digest text, payload text)
JOIN onward.workflows AS w ON w.id = ANY (ARRAY[r.target])
WHERE w.status IN ('pending', 'running', 'waiting') AND w.parent_id IS DISTINCT FROM r.waiter
  AND {same_call}
ON CONFLICT DO NOTHING;

-- name: deliver_known_ends
-- Those that have ended already: their end goes into the waiter's mailbox unless it lies there unread.
WITH mailed AS (
    INSERT INTO onward.mailbox (workflow_id, kind, name, payload, error, created_at)
    SELECT DISTINCT ON (r.waiter, w.id) r.waiter, 'child', w.id, w.result::text::json, w.error, {now}
    FROM json_to_recordset(:rows) AS r (target text, waiter text, type text, digest text, payload text)
    JOIN onward.workflows AS w ON w.id = ANY (ARRAY[r.target])
    WHERE w.status IN ('completed', 'failed', 'cancelled') AND {same_call}
      AND EXISTS (SELECT 1 FROM onward.workflows AS p WHERE p.id = ANY (ARRAY[r.waiter]) AND p.status IN ('pending', 'running', 'waiting'))
      AND NOT EXISTS (SELECT 1 FROM onward.mailbox AS m
                      WHERE m.workflow_id = ANY (ARRAY[r.waiter]) AND NOT m.is_read AND m.kind = 'child' AND m.name = w.id)
    RETURNING workflow_id
), p AS (
    SELECT m.workflow_id AS id, count(*)::integer AS signals, count(*)::integer AS ends, true AS urgent, false AS forced
    FROM mailed AS m GROUP BY m.workflow_id
)
UPDATE onward.workflows AS w SET {wake} FROM p WHERE w.id = ANY (ARRAY[p.id]);
