-- Pruning. The looks lock nobody. What is deleted is locked first, in order of id, passing over what others have locked, and a
-- tree goes in one transaction, however large it is: nobody has to wait for that here. Joins: see the head of journal.sql.
-- The weight of a workflow is 1 and its journal's highest number: what its deletion costs, roughly.

-- name: old_roots
-- Finished roots, oldest first, by workflows_finished: [id, finished_at, wanted, weight, has children]. The limit counts the rows
-- looked at, wanted or not, so that one look is short whatever the filters are. The index knows no ids: those of the last instant
-- are read together, and sorted here.
SELECT coalesce(json_agg(json_build_array(r.id, onward.us(r.finished_at), r.wanted,
    CASE WHEN r.wanted THEN 1 + coalesce((SELECT max(j.seq) FROM onward.journal AS j WHERE j.workflow_id = r.id), 0) ELSE 0 END,
    r.wanted AND EXISTS (SELECT 1 FROM onward.workflows AS c WHERE c.parent_id = r.id)) ORDER BY r.finished_at, r.id), '[]')
FROM (
    SELECT o.* FROM (
        SELECT w.id, w.finished_at,
               (:statuses::json IS NULL OR w.status = ANY (ARRAY(SELECT json_array_elements_text(:statuses::json))))
               AND (:types::json IS NULL OR w.type = ANY (ARRAY(SELECT json_array_elements_text(:types::json)))) AS wanted
        FROM onward.workflows AS w
        WHERE w.parent_id IS NULL AND w.finished_at IS NOT NULL
          AND (w.finished_at, w.id) > (onward.at(:after_at), :after_id) AND w.finished_at < onward.at(:before)
        ORDER BY w.finished_at FETCH FIRST (:limit) ROWS WITH TIES) AS o
    ORDER BY o.finished_at, o.id LIMIT :limit) AS r;

-- name: tree
-- A root and what descends from it, by workflows_children: [id, weight, finished before].
WITH RECURSIVE t (id) AS (
    SELECT :root::text COLLATE "C"
    UNION
    SELECT c.id FROM t CROSS JOIN LATERAL (SELECT w.id FROM onward.workflows AS w WHERE w.parent_id = ANY (ARRAY[t.id])) AS c
)
SELECT coalesce(json_agg(json_build_array(w.id,
    1 + coalesce((SELECT max(j.seq) FROM onward.journal AS j WHERE j.workflow_id = w.id), 0),
    w.finished_at IS NOT NULL AND w.finished_at < onward.at(:before))), '[]')
FROM t JOIN onward.workflows AS w ON w.id = ANY (ARRAY[t.id]);

-- name: lock_old
-- Of these, those that are old still and that nobody else holds; ids in their order.
WITH locked AS MATERIALIZED (
    SELECT w.id FROM json_array_elements_text(:ids) AS i (id) JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.id])
    WHERE w.finished_at < onward.at(:before) ORDER BY w.id FOR UPDATE OF w SKIP LOCKED
)
SELECT coalesce(json_agg(l.id), '[]') FROM locked AS l;

-- name: children_of
-- Of these, by a statement begun after their locks: nothing can be added to a tree whose rows are locked.
SELECT coalesce(json_agg(json_build_array(c.id, c.parent_id)), '[]')
FROM json_array_elements_text(:ids) AS i (id) JOIN onward.workflows AS c ON c.parent_id = ANY (ARRAY[i.id]);

-- name: delete_journals
DELETE FROM onward.journal AS j USING json_array_elements_text(:ids) AS i (id) WHERE j.workflow_id = ANY (ARRAY[i.id]);

-- name: delete_mail
-- By mailbox_token, which has the rows without a token too.
DELETE FROM onward.mailbox AS m USING json_array_elements_text(:ids) AS i (id) WHERE m.workflow_id = ANY (ARRAY[i.id]);

-- name: delete_waiters
-- Both ends of a wait; by the primary key, and by waiters_waiting.
DELETE FROM onward.waiters AS t USING json_array_elements_text(:ids) AS i (id) WHERE t.target = ANY (ARRAY[i.id]);

-- name: delete_waiting
DELETE FROM onward.waiters AS t USING json_array_elements_text(:ids) AS i (id)
WHERE t.waiter = ANY (ARRAY[i.id]) AND t.waiter > '';

-- name: delete_step_retries
DELETE FROM onward.step_retries AS r USING json_array_elements_text(:ids) AS i (id) WHERE r.workflow_id = ANY (ARRAY[i.id]);

-- name: delete_workflows
WITH gone AS (
    DELETE FROM onward.workflows AS w USING json_array_elements_text(:ids) AS i (id) WHERE w.id = ANY (ARRAY[i.id]) RETURNING 1
)
SELECT count(*) FROM gone;
