-- Pruning. The looks run on a reader's connection and lock nobody; the deletes run inside BEGIN IMMEDIATE, rows in order of id.
-- The weight of a workflow is 1 and its journal's highest number: what its deletion costs, roughly.

-- name: old_roots
-- Finished roots, oldest first, by onward_workflows_finished: [id, finished_at, wanted, weight, has children]. The limit counts
-- the rows looked at, wanted or not, so that one look is short whatever the filters are.
SELECT json_group_array(json_array(w.id, w.finished_at, json(iif(w.wanted, 'true', 'false')),
    iif(w.wanted, 1 + coalesce((SELECT max(j.seq) FROM onward_journal AS j WHERE j.workflow_id = w.id), 0), 0),
    json(iif(w.wanted AND EXISTS (SELECT 1 FROM onward_workflows AS c WHERE c.parent_id = w.id), 'true', 'false'))))
FROM (
    SELECT r.id, r.finished_at,
           (:statuses IS NULL OR r.status IN (SELECT value FROM json_each(:statuses)))
           AND (:types IS NULL OR r.type IN (SELECT value FROM json_each(:types))) AS wanted
    FROM onward_workflows AS r
    WHERE r.parent_id IS NULL AND r.finished_at IS NOT NULL
      AND (r.finished_at, r.id) > (:after_at, :after_id) AND r.finished_at < :before
    ORDER BY r.finished_at, r.id LIMIT :limit) AS w;

-- name: tree
-- A root and what descends from it, at most :limit rows, by onward_workflows_children: [id, weight, finished before].
WITH RECURSIVE t (id) AS (
    SELECT :root UNION SELECT c.id FROM t CROSS JOIN onward_workflows AS c WHERE c.parent_id = t.id LIMIT :limit)
SELECT json_group_array(json_array(w.id,
    1 + coalesce((SELECT max(j.seq) FROM onward_journal AS j WHERE j.workflow_id = w.id), 0),
    json(iif(w.finished_at IS NOT NULL AND w.finished_at < :before, 'true', 'false'))))
FROM t CROSS JOIN onward_workflows AS w WHERE w.id = t.id;

-- name: is_whole_tree_old
WITH RECURSIVE t (id) AS (
    SELECT :root UNION SELECT c.id FROM t CROSS JOIN onward_workflows AS c WHERE c.parent_id = t.id)
SELECT NOT EXISTS (
    SELECT 1 FROM t CROSS JOIN onward_workflows AS w
    WHERE w.id = t.id AND (w.finished_at IS NULL OR w.finished_at >= :before));

-- name: no_longer_old
-- Of these: what an operator's retry has brought back since the look.
SELECT json_group_array(w.id) FROM json_each(:ids) AS i CROSS JOIN onward_workflows AS w
WHERE w.id = i.value AND (w.finished_at IS NULL OR w.finished_at >= :before);

-- name: first_mark
SELECT root, finished_before, position FROM onward_prunings ORDER BY root LIMIT 1;

-- name: read_mark
SELECT finished_before, position FROM onward_prunings WHERE root = :root;

-- name: mark
INSERT INTO onward_prunings (root, finished_before)
SELECT w.id, :before FROM onward_workflows AS w WHERE w.id = :root AND w.finished_at < :before
ON CONFLICT DO NOTHING;

-- name: move_mark
UPDATE onward_prunings SET position = :position WHERE root = :root;

-- name: delete_mark
DELETE FROM onward_prunings WHERE root = :root;

-- name: children_of
-- In the order of onward_workflows_children, read one by one: [id, weight, has children].
SELECT c.id, 1 + coalesce((SELECT max(j.seq) FROM onward_journal AS j WHERE j.workflow_id = c.id), 0),
       EXISTS (SELECT 1 FROM onward_workflows AS g WHERE g.parent_id = c.id)
FROM onward_workflows AS c WHERE c.parent_id = :id ORDER BY c.created_at, c.id;

-- name: parts_of
-- [parent, weight]
SELECT w.parent_id, 1 + coalesce((SELECT max(j.seq) FROM onward_journal AS j WHERE j.workflow_id = w.id), 0)
FROM onward_workflows AS w WHERE w.id = :id;

-- name: trim_journal
-- The last entries of one history, which nobody will replay any more.
DELETE FROM onward_journal WHERE workflow_id = :id AND seq > :seq;

-- name: delete_journals
DELETE FROM onward_journal WHERE workflow_id IN (SELECT value FROM json_each(:ids));

-- name: delete_mail
DELETE FROM onward_mailbox WHERE workflow_id IN (SELECT value FROM json_each(:ids));

-- name: delete_waiters
-- Both ends of a wait; by the primary key, and by onward_waiters_waiting.
DELETE FROM onward_waiters
WHERE target IN (SELECT value FROM json_each(:ids)) OR waiter IN (SELECT value FROM json_each(:ids));

-- name: delete_retries
DELETE FROM onward_step_retries WHERE workflow_id IN (SELECT value FROM json_each(:ids));

-- name: delete_workflows
DELETE FROM onward_workflows WHERE id IN (SELECT value FROM json_each(:ids));
