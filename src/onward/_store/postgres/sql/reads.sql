-- Reads for people: single statements, never locking anybody. `{workflow}` are the columns of records.WorkflowRow; the seed is
-- not among them (`get_seed` is for exports).

-- name: get_workflow
SELECT row_to_json(r) FROM (SELECT {workflow} FROM onward.workflows AS w WHERE w.id = :id) AS r;

-- name: get_seed
SELECT (SELECT w.seed FROM onward.workflows AS w WHERE w.id = :id);

-- name: list_final
SELECT coalesce(json_agg(r), '[]') FROM (
    SELECT {workflow} FROM json_array_elements_text(:ids) AS i (id) JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.id])
    WHERE w.status IN ('completed', 'failed', 'cancelled')) AS r;

-- name: fragment_page
w.created_at > onward.at(:created_after) AND w.created_at < onward.at(:created_before)
AND (:statuses::json IS NULL OR w.status = ANY (ARRAY(SELECT json_array_elements_text(:statuses::json))))
AND (:types::json IS NULL OR w.type = ANY (ARRAY(SELECT json_array_elements_text(:types::json))))
AND (:tags::jsonb IS NULL OR w.tags::jsonb @> :tags::jsonb)
ORDER BY w.created_at DESC, w.id DESC LIMIT :limit

-- name: list_workflows
-- By workflows_newest, backwards.
SELECT coalesce(json_agg(r), '[]') FROM (
    SELECT {workflow} FROM onward.workflows AS w
    WHERE (w.created_at, w.id) < (onward.at(:before_at), :before_id) AND {page}) AS r;

-- name: list_children_page
-- By workflows_children, backwards.
SELECT coalesce(json_agg(r), '[]') FROM (
    SELECT {workflow} FROM onward.workflows AS w
    WHERE w.parent_id = :parent_id AND (w.created_at, w.id) < (onward.at(:before_at), :before_id) AND {page}) AS r;

-- name: list_children
SELECT coalesce(json_agg(r), '[]') FROM (
    SELECT {workflow} FROM onward.workflows AS w WHERE w.parent_id = :id ORDER BY w.created_at, w.id) AS r;

-- name: read_journal
SELECT coalesce(json_agg(r), '[]') FROM (
    SELECT j.seq, j.key, j.kind, j.digest, j.arguments, j.result::text AS result, j.error::text AS error, j.tries,
           onward.us(j.started_at) AS started_at, onward.us(j.finished_at) AS finished_at, j.struck
    FROM onward.journal AS j WHERE j.workflow_id = :id ORDER BY j.seq) AS r;

-- name: count_by_status
SELECT coalesce(json_object_agg(c.status, c.n), '{}')
FROM (SELECT w.status, count(*) AS n FROM onward.workflows AS w GROUP BY w.status) AS c;

-- name: list_workers
SELECT coalesce(json_agg(r), '[]') FROM (
    SELECT k.id, k.name, k.host, k.pid, k.queues, k.types, k.code_version, onward.us(k.started_at) AS started_at,
           onward.us(k.expires_at) AS expires_at, k.is_dead
    FROM onward.workers AS k ORDER BY k.started_at DESC, k.id DESC) AS r;

-- name: fragment_workflow
-- The last step is found in the journal (backwards by its primary key): the column lags behind it on purpose.
w.id, w.type, w.status, w.queue, w.priority, w.partition, w.payload::text AS payload, w.digest, w.result::text AS result,
w.error::text AS error, w.progress::text AS progress, w.tags::text AS tags,
coalesce((SELECT j.key FROM onward.journal AS j WHERE j.workflow_id = w.id AND j.kind = 'step' AND NOT j.struck
          ORDER BY j.seq DESC LIMIT 1), w.step) AS step,
w.waiting_for::text AS waiting_for, w.attempts, w.crashes, w.max_attempts, w.epoch, w.signals, w.run, w.worker, w.parent_id,
w.version, w.code_version, onward.us(w.next_run_at) AS next_run_at, onward.us(w.deadline) AS deadline,
onward.us(w.cancel_requested_at) AS cancel_requested_at, onward.us(w.created_at) AS created_at,
onward.us(w.started_at) AS started_at, onward.us(w.updated_at) AS updated_at, onward.us(w.finished_at) AS finished_at
