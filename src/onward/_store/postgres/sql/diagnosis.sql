-- What `onward doctor` reads of the work, inside one read-only transaction of one snapshot: no lock that a writer waits for. These
-- read whole tables, and are asked by people, rarely. A sample is [count, [some ids]].

-- name: survey_workflows
-- [status, queue, type, count, claimable now, since, last change, oldest end]
WITH t AS MATERIALIZED (SELECT {now} AS now)
SELECT coalesce(json_agg(json_build_array(
    g.status, g.queue, g.type, g.n, g.due, onward.us(g.due_since), onward.us(g.updated_at), onward.us(g.finished_at))), '[]')
FROM (
    SELECT w.status, w.queue, w.type, count(*) AS n,
           count(*) FILTER (WHERE w.next_run_at <= t.now AND w.crashes < :quarantine AND w.diverged_by IS NULL) AS due,
           min(w.next_run_at) FILTER (
               WHERE w.next_run_at <= t.now AND w.crashes < :quarantine AND w.diverged_by IS NULL) AS due_since,
           max(w.updated_at) AS updated_at, min(w.finished_at) AS finished_at
    FROM onward.workflows AS w, t GROUP BY w.status, w.queue, w.type) AS g;

-- name: count_held
-- By the index of held rows.
SELECT coalesce(json_object_agg(k.worker, k.n), '{}')
FROM (SELECT w.worker, count(*) AS n FROM onward.workflows AS w WHERE w.status = 'running' GROUP BY w.worker) AS k;

-- name: fragment_sample
SELECT json_build_array(
    (SELECT count(*) FROM found),
    (SELECT coalesce(json_agg(s.id), '[]') FROM (SELECT f.id FROM found AS f ORDER BY f.id LIMIT :limit) AS s))

-- name: sample_quarantined
WITH found AS MATERIALIZED (
    SELECT w.id FROM onward.workflows AS w
    WHERE w.crashes >= :quarantine AND w.status IN ('pending', 'running', 'waiting')
)
{sample};

-- name: sample_crashed
WITH found AS MATERIALIZED (
    SELECT w.id FROM onward.workflows AS w
    WHERE w.status = 'failed' AND w.finished_at > {now} - interval '7 days' AND w.error ->> 'type' = 'WorkflowCrashed'
)
{sample};

-- name: sample_diverged
-- By workflows_diverged.
WITH found AS MATERIALIZED (
    SELECT w.id FROM onward.workflows AS w WHERE w.diverged_by IS NOT NULL AND w.status = 'pending'
)
{sample};

-- name: sample_unwakeable
-- Of the waits of a row the first 20 are kept for people: a row with as many may wait for more.
WITH found AS MATERIALIZED (
    SELECT w.id FROM onward.workflows AS w
    WHERE w.status = 'waiting' AND w.next_run_at IS NULL
      AND CASE WHEN json_typeof(w.waiting_for) = 'array' THEN json_array_length(w.waiting_for) < 20 AND NOT EXISTS (
          SELECT 1 FROM json_array_elements(w.waiting_for) AS i (value)
          WHERE CASE WHEN json_typeof(i.value) = 'object' THEN CASE i.value ->> 'kind'
              WHEN 'signal' THEN true
              WHEN 'child' THEN EXISTS (
                  SELECT 1 FROM onward.workflows AS c
                  WHERE c.id = i.value ->> 'name' AND c.status IN ('pending', 'running', 'waiting'))
              ELSE false END ELSE false END)
          ELSE false END
)
{sample};

-- name: count_created
-- [in the last day, of all the oldest]; by workflows_newest.
SELECT json_build_array(
    (SELECT count(*) FROM onward.workflows AS w WHERE w.created_at > {now} - interval '24 hours'),
    (SELECT onward.us(min(w.created_at)) FROM onward.workflows AS w));

-- name: largest_payloads
-- [workflow, what, bytes]; reads every value.
SELECT coalesce(json_agg(json_build_array(p.id, p.what, p.n)), '[]') FROM (
    SELECT w.id, 'arguments' AS what, octet_length(w.payload::text) AS n FROM onward.workflows AS w
    UNION ALL
    SELECT w.id, 'result', octet_length(w.result::text) FROM onward.workflows AS w WHERE w.result IS NOT NULL
    UNION ALL
    SELECT w.id, 'progress', octet_length(w.progress::text) FROM onward.workflows AS w WHERE w.progress IS NOT NULL
    UNION ALL
    SELECT j.workflow_id, 'result of ' || j.kind || ' ' || j.key, octet_length(j.result::text) FROM onward.journal AS j
    WHERE j.result IS NOT NULL AND j.kind IN ('step', 'child', 'signal')
    ORDER BY n DESC LIMIT :limit) AS p;

-- name: look_at_proofs
-- [worker, its lock is held, it may be judged by that]: as look_for_dead, but told once, and nobody is buried.
WITH t AS MATERIALIZED (SELECT {now} AS now), held AS MATERIALIZED (
    SELECT l.objid::bigint AS key FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.classid = :class::bigint::oid AND l.objsubid = 2
      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
)
SELECT coalesce(json_agg(json_build_array(
    k.id, k.lock_key IN (SELECT h.key FROM held AS h),
    t.now - k.renewed_at > interval '3 seconds' AND t.now - pg_postmaster_start_time() > k.expires_at - k.renewed_at)), '[]')
FROM onward.workers AS k, t WHERE NOT k.is_dead AND k.lock_key IS NOT NULL;

-- name: measure_tables
-- The bytes of our tables with their indexes and what lies outside the rows.
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_class AS c WHERE c.relkind = 'r' AND c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = :schema)
  AND c.relname = ANY (ARRAY(SELECT json_array_elements_text(:tables)));
