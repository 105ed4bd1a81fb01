-- Taking, finding and giving back rows. The due index (queue, priority, next_run_at, id) is probed once a priority: with
-- `next_run_at` after `priority`, one range over all priorities would walk every future row of the better ones.
-- `diverged_by` is a JSON object: until when each code version that could not replay the row is held back from it.

-- name: fragment_claimable
(w.crashes >= 2) = :alone
AND w.type = ANY (ARRAY(SELECT json_array_elements_text(:types)))
AND (w.version IS NULL OR split_part(w.version, '/', 1)::integer <= :format)

-- name: fragment_foreseen
-- The same to look ahead; alone: whether of rows in quarantine, of others, or (null) of all.
coalesce((w.crashes >= 2) = :alone, true)
AND w.type = ANY (ARRAY(SELECT json_array_elements_text(:types)))
AND (w.version IS NULL OR split_part(w.version, '/', 1)::integer <= :format)

-- name: fragment_fits
(w.diverged_by IS NULL OR coalesce((w.diverged_by ->> :code_version)::bigint, 0) <= onward.us((SELECT t.now FROM t)))

-- name: fragment_take
-- due [id, n] → the rows as they are once claimed. The worker's own row is locked against being declared dead meanwhile.
UPDATE onward.workflows AS w SET
    status = 'running', worker = :worker, epoch = w.epoch + 1, next_run_at = NULL, waiting_for = NULL, awaited = NULL,
    wake_floor = NULL, started_at = coalesce(w.started_at, t.now),
    deadline = coalesce(w.deadline, t.now + w.timeout_us * interval '1 microsecond'),
    version = coalesce(w.version, :version), code_version = coalesce(w.code_version, :code_version), updated_at = t.now
FROM due, t WHERE w.id = ANY (ARRAY[due.id])
RETURNING due.n, json_build_array(
    w.id, w.type, w.payload::text, w.digest, w.seed, w.epoch, w.signals, w.attempts, w.crashes, w.max_attempts, w.run,
    onward.us(w.created_at), onward.us(w.started_at), w.queue, w.priority, w.partition, w.tags::text, w.parent_id,
    onward.us(w.deadline), w.version, w.code_version, w.divergences) AS row

-- name: fragment_priorities
-- p [priority]: those of the queue that have a claimable row, due or not, best first; each found by one probe.
p (priority) AS (
    SELECT (SELECT w.priority FROM onward.workflows AS w
            WHERE w.queue = :queue AND w.next_run_at IS NOT NULL ORDER BY w.priority LIMIT 1)
    UNION ALL
    SELECT (SELECT w.priority FROM onward.workflows AS w
            WHERE w.queue = :queue AND w.next_run_at IS NOT NULL AND w.priority > p.priority ORDER BY w.priority LIMIT 1)
    FROM p WHERE p.priority IS NOT NULL
)

-- name: fragment_claimer
-- The worker's own row is locked against being declared dead meanwhile.
k AS MATERIALIZED (
    SELECT k.id FROM onward.workers AS k WHERE k.id = :worker AND NOT k.is_dead FOR SHARE
)

-- name: fragment_taken
-- found [id, priority, next_run_at] → [clock, [clock, microseconds it took, last next_run_at by priority], rows]
due AS MATERIALIZED (
    SELECT f.id, row_number() OVER () AS n FROM found AS f
), taken AS (
    {take}
)
SELECT json_build_array(
    (SELECT coalesce(json_agg(k.row ORDER BY k.n), '[]') FROM taken AS k),
    json_build_array(onward.us((SELECT t.now FROM t)), onward.us(clock_timestamp()) - onward.us((SELECT t.began FROM t)), (
        SELECT coalesce(json_object_agg(l.priority, l.last), '{}')
        FROM (SELECT f.priority, onward.us(max(f.next_run_at)) AS last FROM found AS f GROUP BY f.priority) AS l)))

-- name: claim_due
-- From the best priority on, in the order of the index; rows that others have locked are skipped.
WITH RECURSIVE t AS MATERIALIZED (SELECT {now} AS now, clock_timestamp() AS began), {claimer}, {priorities}, found AS MATERIALIZED (
    SELECT d.id, d.priority, d.next_run_at FROM k CROSS JOIN p CROSS JOIN LATERAL (
        SELECT w.id, w.priority, w.next_run_at FROM onward.workflows AS w
        WHERE w.queue = :queue AND w.priority = p.priority AND w.next_run_at <= (SELECT t.now FROM t)
          AND {claimable} AND {fits}
        ORDER BY w.next_run_at, w.id LIMIT :limit FOR UPDATE SKIP LOCKED
    ) AS d WHERE p.priority IS NOT NULL LIMIT :limit
), {taken};

-- name: claim_from
-- The same for known priorities, each from its floor on: it walks no dead entries before that (floors.py).
WITH t AS MATERIALIZED (SELECT {now} AS now, clock_timestamp() AS began), {claimer}, p AS MATERIALIZED (
    SELECT e.key::integer AS priority, onward.at(e.value::bigint) AS floor
    FROM json_each_text(:floors) AS e (key, value) ORDER BY 1
), found AS MATERIALIZED (
    SELECT d.id, d.priority, d.next_run_at FROM k CROSS JOIN p CROSS JOIN LATERAL (
        SELECT w.id, w.priority, w.next_run_at FROM onward.workflows AS w
        WHERE w.queue = :queue AND w.priority = p.priority
          AND w.next_run_at >= p.floor AND w.next_run_at <= (SELECT t.now FROM t)
          AND {claimable} AND {fits}
        ORDER BY w.next_run_at, w.id LIMIT :limit FOR UPDATE SKIP LOCKED
    ) AS d LIMIT :limit
), {taken};

-- name: look_at_everything
-- Beside such claims, without a lock: the first claimable row of each priority. [clock, microseconds it took, by priority]
WITH RECURSIVE t AS MATERIALIZED (SELECT {now} AS now, clock_timestamp() AS began), {priorities}, first AS MATERIALIZED (
    SELECT p.priority, (
        SELECT onward.us(w.next_run_at) FROM onward.workflows AS w
        WHERE w.queue = :queue AND w.priority = p.priority AND w.next_run_at IS NOT NULL
          AND {claimable} AND (w.next_run_at > (SELECT t.now FROM t) OR {fits})
        ORDER BY w.next_run_at, w.id LIMIT 1) AS at
    FROM p WHERE p.priority IS NOT NULL
), seen AS MATERIALIZED (
    SELECT coalesce(json_object_agg(f.priority, f.at), '{}') AS times FROM first AS f WHERE f.at IS NOT NULL
)
SELECT json_build_array(onward.us((SELECT t.now FROM t)), onward.us(clock_timestamp()) - onward.us((SELECT t.began FROM t)), s.times)
FROM seen AS s;

-- name: next_due_from
-- The first claimable row of one queue at or after the floors.
WITH t AS MATERIALIZED (SELECT {now} AS now)
SELECT onward.us(min((
    SELECT w.next_run_at FROM onward.workflows AS w
    WHERE w.queue = :queue AND w.priority = e.key::integer AND w.next_run_at >= onward.at(e.value::bigint)
      AND {foreseen} AND (w.next_run_at > (SELECT t.now FROM t) OR {fits})
    ORDER BY w.next_run_at, w.id LIMIT 1)))
FROM json_each_text(:floors) AS e (key, value);

-- name: claim_only
-- The same among given ids, by the primary key.
WITH t AS MATERIALIZED (SELECT {now} AS now, clock_timestamp() AS began), {claimer}, found AS MATERIALIZED (
    SELECT w.id, w.priority, w.next_run_at
    FROM k CROSS JOIN (SELECT DISTINCT i.id FROM json_array_elements_text(:only) AS i (id)) AS o
    JOIN onward.workflows AS w ON w.id = ANY (ARRAY[o.id])
    WHERE w.queue = :queue AND w.next_run_at <= (SELECT t.now FROM t) AND {claimable} AND {fits}
    ORDER BY w.priority, w.next_run_at, w.id LIMIT :limit FOR UPDATE OF w SKIP LOCKED
), {taken};

-- name: load_histories
-- By one statement, so from one snapshot, begun after the claim has committed. Primary keys and mailbox_unread.
SELECT coalesce(json_agg(json_build_array(
    w.id, w.signals,
    (SELECT coalesce(json_agg(json_build_array(
        j.seq, j.key, j.kind, onward.us(j.finished_at), j.result::text, j.error::text, j.digest, j.arguments, j.tries,
        onward.us(j.started_at)) ORDER BY j.seq), '[]')
     FROM onward.journal AS j WHERE j.workflow_id = w.id AND NOT j.struck),
    (SELECT coalesce(json_agg(json_build_array(
        m.id, m.kind, onward.us(m.created_at), m.name, m.payload::text, m.error::text) ORDER BY m.id), '[]')
     FROM onward.mailbox AS m WHERE m.workflow_id = w.id AND NOT m.is_read),
    (SELECT coalesce(json_agg(json_build_array(r.key, r.tries, onward.us(r.next_at), r.error::text)), '[]')
     FROM onward.step_retries AS r WHERE r.workflow_id = w.id),
    (SELECT coalesce(max(j.seq), 0) FROM onward.journal AS j WHERE j.workflow_id = w.id))), '[]')
FROM json_array_elements_text(:ids) AS i (id) JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.id]);

-- name: next_due
-- The first claimable row of each queue and priority, due or not.
WITH RECURSIVE t AS MATERIALIZED (SELECT {now} AS now), p (queue, priority) AS (
    SELECT q.queue, (SELECT w.priority FROM onward.workflows AS w
                     WHERE w.queue = q.queue AND w.next_run_at IS NOT NULL ORDER BY w.priority LIMIT 1)
    FROM json_array_elements_text(:queues) AS q (queue)
    UNION ALL
    SELECT p.queue, (SELECT w.priority FROM onward.workflows AS w
                     WHERE w.queue = p.queue AND w.next_run_at IS NOT NULL AND w.priority > p.priority
                     ORDER BY w.priority LIMIT 1)
    FROM p WHERE p.priority IS NOT NULL
)
SELECT onward.us(min((
    SELECT w.next_run_at FROM onward.workflows AS w
    WHERE w.queue = p.queue AND w.priority = p.priority AND w.next_run_at IS NOT NULL
      AND {foreseen} AND (w.next_run_at > (SELECT t.now FROM t) OR {fits})
    ORDER BY w.next_run_at, w.id LIMIT 1)))
FROM p WHERE p.priority IS NOT NULL;

-- name: next_held_back
-- When the first row that is due, but not yet for this code version, will be. By workflows_diverged (next_run_at): of the
-- diverged rows only those that another version, or a wake, has pulled forward.
WITH t AS MATERIALIZED (SELECT {now} AS now)
SELECT min((w.diverged_by ->> :code_version)::bigint) FROM onward.workflows AS w
WHERE w.diverged_by IS NOT NULL AND w.next_run_at <= (SELECT t.now FROM t)
  AND (w.diverged_by ->> :code_version)::bigint > onward.us((SELECT t.now FROM t))
  AND w.queue = ANY (ARRAY(SELECT json_array_elements_text(:queues))) AND {foreseen};

-- name: next_due_only
WITH t AS MATERIALIZED (SELECT {now} AS now)
SELECT min(CASE WHEN w.diverged_by IS NULL OR w.next_run_at > (SELECT t.now FROM t) THEN onward.us(w.next_run_at)
    WHEN (w.diverged_by ->> :code_version)::bigint > onward.us((SELECT t.now FROM t))
    THEN greatest(onward.us(w.next_run_at), (w.diverged_by ->> :code_version)::bigint)
    ELSE onward.us(w.next_run_at) END)
FROM json_array_elements_text(:only) AS i (id) JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.id])
WHERE w.next_run_at IS NOT NULL AND w.queue = ANY (ARRAY(SELECT json_array_elements_text(:queues))) AND {foreseen};

-- name: release_not_held
-- Running rows of a worker other than the (id, epoch) it holds, by the index of held rows. The epoch rises, so that a write of
-- the worker that is still on its way can never be taken for applied.
WITH h AS MATERIALIZED (
    SELECT h.id, h.epoch FROM json_to_recordset(:held) AS h (id text, epoch integer)
), found AS MATERIALIZED (
    SELECT w.id FROM onward.workflows AS w
    WHERE w.status = 'running' AND w.worker = :worker AND (w.id, w.epoch) NOT IN (SELECT h.id, h.epoch FROM h)
    ORDER BY w.id FOR UPDATE SKIP LOCKED
), released AS (
    UPDATE onward.workflows AS w SET
        status = 'pending', worker = NULL, epoch = w.epoch + 1, next_run_at = {now}, updated_at = {now}
    FROM found AS f WHERE w.id = ANY (ARRAY[f.id]) AND w.status = 'running' AND w.worker = :worker
    RETURNING w.id
)
SELECT coalesce(json_agg(r.id), '[]') FROM released AS r;

-- name: adopt_diverged
-- By workflows_diverged. Rows that others hold are left for the next time.
WITH found AS MATERIALIZED (
    SELECT w.id FROM onward.workflows AS w
    WHERE w.diverged_by IS NOT NULL AND w.status = 'pending' AND w.next_run_at > {now}
      AND NOT w.diverged_by ? :code_version
    ORDER BY w.id FOR UPDATE SKIP LOCKED
), adopted AS (
    UPDATE onward.workflows AS w SET next_run_at = {now}, updated_at = {now} FROM found AS f WHERE w.id = ANY (ARRAY[f.id]) RETURNING 1
)
SELECT count(*) FROM adopted;
