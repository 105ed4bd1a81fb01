-- Reads for people: single statements on a reader's connection, never locking anybody. `workflow` columns are given as JSON
-- objects with the names of records.WorkflowRow; the seed is not among them (`get_seed` is for exports).

-- name: get_workflow
SELECT {workflow} FROM onward_workflows AS w WHERE w.id = :id;

-- name: get_seed
SELECT seed FROM onward_workflows WHERE id = :id;

-- name: list_final
SELECT json_group_array({workflow}) FROM json_each(:ids) AS i CROSS JOIN onward_workflows AS w
WHERE w.id = i.value AND w.status IN ('completed', 'failed', 'cancelled');

-- name: list_workflows
-- By onward_workflows_newest, backwards.
SELECT json_group_array(json(row)) FROM (
    SELECT {workflow} AS row FROM onward_workflows AS w
    WHERE (w.created_at, w.id) < (:before_at, :before_id)
      AND w.created_at > :created_after AND w.created_at < :created_before
      AND (:statuses IS NULL OR w.status IN (SELECT value FROM json_each(:statuses)))
      AND (:types IS NULL OR w.type IN (SELECT value FROM json_each(:types)))
      AND (:tags IS NULL OR {tagged})
    ORDER BY w.created_at DESC, w.id DESC LIMIT :limit);

-- name: list_children_page
-- By onward_workflows_children, backwards.
SELECT json_group_array(json(row)) FROM (
    SELECT {workflow} AS row FROM onward_workflows AS w
    WHERE w.parent_id = :parent_id AND (w.created_at, w.id) < (:before_at, :before_id)
      AND w.created_at > :created_after AND w.created_at < :created_before
      AND (:statuses IS NULL OR w.status IN (SELECT value FROM json_each(:statuses)))
      AND (:types IS NULL OR w.type IN (SELECT value FROM json_each(:types)))
      AND (:tags IS NULL OR {tagged})
    ORDER BY w.created_at DESC, w.id DESC LIMIT :limit);

-- name: list_children
SELECT json_group_array(json(row)) FROM (
    SELECT {workflow} AS row FROM onward_workflows AS w WHERE w.parent_id = :id ORDER BY w.created_at, w.id);

-- name: read_journal
SELECT json_group_array(json_object(
    'seq', j.seq, 'key', j.key, 'kind', j.kind, 'digest', j.digest, 'arguments', j.arguments, 'result', j.result,
    'error', j.error, 'tries', j.tries, 'started_at', j.started_at, 'finished_at', j.finished_at,
    'struck', json(iif(j.struck, 'true', 'false'))))
FROM (SELECT * FROM onward_journal WHERE workflow_id = :id ORDER BY seq) AS j;

-- name: count_by_status
SELECT json_group_object(status, n) FROM (SELECT status, count(*) AS n FROM onward_workflows GROUP BY status);

-- name: list_workers
SELECT json_group_array(json_object(
    'id', k.id, 'name', k.name, 'host', k.host, 'pid', k.pid, 'queues', json(k.queues), 'types', json(k.types),
    'code_version', k.code_version, 'started_at', k.started_at, 'expires_at', k.expires_at,
    'is_dead', json(iif(k.is_dead, 'true', 'false'))))
FROM (SELECT * FROM onward_workers ORDER BY started_at DESC, id DESC) AS k;
