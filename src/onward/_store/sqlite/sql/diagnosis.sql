-- What `onward doctor` reads, on a reader's connection inside one read transaction: no lock that a writer waits for. These
-- read whole tables, and are asked by people, rarely. A sample is [count, [some ids]].

-- name: survey_workflows
-- [status, queue, type, count, claimable now, since, last change, oldest end]
SELECT json_group_array(json_array(g.status, g.queue, g.type, g.n, g.due, g.due_since, g.updated_at, g.oldest_finished_at))
FROM (
    SELECT status, queue, type, count(*) AS n,
           count(iif(next_run_at <= :now AND crashes < :quarantine AND diverged_by IS NULL, 1, NULL)) AS due,
           min(iif(next_run_at <= :now AND crashes < :quarantine AND diverged_by IS NULL, next_run_at, NULL)) AS due_since,
           max(updated_at) AS updated_at, min(finished_at) AS oldest_finished_at
    FROM onward_workflows GROUP BY status, queue, type) AS g;

-- name: count_held
-- By the index of held rows.
SELECT json_group_object(k.worker, k.n)
FROM (SELECT worker, count(*) AS n FROM onward_workflows WHERE status = 'running' GROUP BY worker) AS k;

-- name: sample_quarantined
WITH found (id) AS (
    SELECT id FROM onward_workflows WHERE crashes >= :quarantine AND status IN ('pending', 'running', 'waiting'))
SELECT json_array((SELECT count(*) FROM found), json((SELECT json_group_array(id) FROM (SELECT id FROM found ORDER BY id LIMIT :limit))));

-- name: sample_crashed
WITH found (id) AS (
    SELECT id FROM onward_workflows
    WHERE status = 'failed' AND finished_at > :since
      AND CASE WHEN json_valid(error) THEN json_extract(error, '$.type') = 'WorkflowCrashed' ELSE 0 END)
SELECT json_array((SELECT count(*) FROM found), json((SELECT json_group_array(id) FROM (SELECT id FROM found ORDER BY id LIMIT :limit))));

-- name: sample_diverged
-- By onward_workflows_diverged.
WITH found (id) AS (SELECT id FROM onward_workflows WHERE diverged_by IS NOT NULL AND status = 'pending')
SELECT json_array((SELECT count(*) FROM found), json((SELECT json_group_array(id) FROM (SELECT id FROM found ORDER BY id LIMIT :limit))));

-- name: sample_unwakeable
-- Of the waits of a row the first 20 are kept for people: a row with as many may wait for more.
WITH found (id) AS (
    SELECT w.id FROM onward_workflows AS w
    WHERE w.status = 'waiting' AND w.next_run_at IS NULL
      AND CASE WHEN json_valid(w.waiting_for) THEN json_array_length(w.waiting_for) < 20 AND NOT EXISTS (
          SELECT 1 FROM json_each(w.waiting_for) AS i
          WHERE CASE WHEN i.type = 'object' THEN CASE json_extract(i.value, '$.kind')
              WHEN 'signal' THEN 1
              WHEN 'child' THEN EXISTS (
                  SELECT 1 FROM onward_workflows AS c
                  WHERE c.id = json_extract(i.value, '$.name') AND c.status IN ('pending', 'running', 'waiting')) END END)
          ELSE 0 END)
SELECT json_array((SELECT count(*) FROM found), json((SELECT json_group_array(id) FROM (SELECT id FROM found ORDER BY id LIMIT :limit))));

-- name: count_created
-- [since then, of all the oldest]; by onward_workflows_newest.
SELECT json_array((SELECT count(*) FROM onward_workflows WHERE created_at > :since), (SELECT min(created_at) FROM onward_workflows));

-- name: largest_payloads
-- [workflow, what, bytes]; reads every value.
SELECT json_group_array(json_array(p.id, p.what, p.n)) FROM (
    SELECT id, 'arguments' AS what, length(CAST(payload AS BLOB)) AS n FROM onward_workflows
    UNION ALL
    SELECT id, 'result', length(CAST(result AS BLOB)) FROM onward_workflows WHERE result IS NOT NULL
    UNION ALL
    SELECT id, 'progress', length(CAST(progress AS BLOB)) FROM onward_workflows WHERE progress IS NOT NULL
    UNION ALL
    SELECT workflow_id, 'result of ' || kind || ' ' || key, length(CAST(result AS BLOB)) FROM onward_journal
    WHERE result IS NOT NULL AND kind IN ('step', 'child', 'signal')
    ORDER BY n DESC LIMIT :limit) AS p;
