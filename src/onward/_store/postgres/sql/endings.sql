-- The end of workflows and all that follows from it, in one statement: the outcome, mail to parent and waiters that live, their
-- wake, and what is deleted. The rows ended and the rows woken are locked by the caller's first statement.

-- name: fragment_tell_ends
-- ended [id, parent_id, signals, status, result, error, n] → mail and wakes; a reader that ends in this very statement gets none.
watched AS MATERIALIZED (
    SELECT t.target, t.waiter AS reader, e.n, e.status, e.result, e.error
    FROM ended AS e JOIN onward.waiters AS t ON t.target = ANY (ARRAY[e.id])
), told AS MATERIALIZED (
    SELECT e.parent_id AS reader, e.n, e.id, e.status, e.result, e.error FROM ended AS e WHERE e.parent_id IS NOT NULL
    UNION ALL
    SELECT x.reader, x.n, x.target, x.status, x.result, x.error FROM watched AS x
), live AS MATERIALIZED (
    SELECT t.* FROM told AS t JOIN onward.workflows AS p ON p.id = ANY (ARRAY[t.reader])
    WHERE p.status IN ('pending', 'running', 'waiting') AND p.id NOT IN (SELECT e.id FROM ended AS e)
    ORDER BY t.n
), mailed AS (
    INSERT INTO onward.mailbox (workflow_id, kind, name, payload, error, created_at)
    SELECT l.reader, 'child', l.id, l.result, l.error, {now} FROM live AS l
), unwatched AS (
    DELETE FROM onward.waiters AS t WHERE t.target = ANY (ARRAY(SELECT x.target FROM watched AS x))
), unread AS (
    DELETE FROM onward.mailbox AS m USING ended AS e WHERE e.signals > 0 AND m.workflow_id = ANY (ARRAY[e.id])
), untried AS (
    DELETE FROM onward.step_retries AS r WHERE r.workflow_id = ANY (ARRAY(SELECT e.id FROM ended AS e))
), p AS (
    SELECT l.reader AS id, count(*)::integer AS signals, count(*)::integer AS ends, bool_or(l.status <> 'completed') AS urgent,
           false AS forced
    FROM live AS l GROUP BY l.reader
)
UPDATE onward.workflows AS w SET {wake} FROM p WHERE w.id = ANY (ARRAY[p.id]) AND w.status IN ('pending', 'running', 'waiting')

-- name: fragment_cleared
worker = NULL, next_run_at = NULL, waiting_for = NULL, awaited = NULL, wake_floor = NULL, divergences = 0, diverged_by = NULL,
updated_at = {now}, finished_at = {now}

-- name: finish_rows
-- Ends of executions, under their fences.
WITH r AS MATERIALIZED (
    SELECT * FROM ROWS FROM (json_to_recordset(:rows) AS (
        id text, worker text, epoch integer, status text, result text, error text, spends boolean)) WITH ORDINALITY
        AS r (id, worker, epoch, status, result, error, spends, n)
), ended AS (
    UPDATE onward.workflows AS w SET
        status = r.status, result = r.result::json, error = r.error::json, attempts = w.attempts + r.spends::integer, {cleared}
    FROM r WHERE w.id = ANY (ARRAY[r.id]) AND w.worker = r.worker AND w.epoch = r.epoch
    RETURNING w.id, w.parent_id, w.signals, w.status, w.result, w.error, r.n
), {tell_ends};

-- name: fragment_cancelled
-- The workflows asked to end, and the living children of those that took theirs along; a row that will be woken is locked.
x AS MATERIALIZED (
    SELECT i.id FROM json_array_elements_text(:ids) AS i (id)
    UNION
    SELECT c.id FROM json_array_elements_text(:parents) AS i (id) JOIN onward.workflows AS c ON c.parent_id = ANY (ARRAY[i.id])
    ORDER BY 1
)

-- name: cancel_unbegun
-- Those that never ran end at once.
WITH {cancelled}, ended AS (
    UPDATE onward.workflows AS w SET status = 'cancelled', result = NULL, error = :error::json, {cleared}
    FROM x WHERE w.id = ANY (ARRAY[x.id]) AND w.epoch = 0 AND w.status IN ('pending', 'waiting')
    RETURNING w.id, w.parent_id, w.signals, w.status, w.result, w.error, 0 AS n
), {tell_ends};

-- name: request_cancel
-- The others are asked, once.
WITH {cancelled}, mailed AS (
    INSERT INTO onward.mailbox (workflow_id, kind, created_at)
    SELECT w.id, 'cancel', {now} FROM x JOIN onward.workflows AS w ON w.id = ANY (ARRAY[x.id])
    WHERE w.epoch > 0 AND w.cancel_requested_at IS NULL AND w.status IN ('pending', 'running', 'waiting')
    RETURNING workflow_id
), p AS (
    SELECT m.workflow_id AS id, 1 AS signals, 0 AS ends, false AS urgent, true AS forced FROM mailed AS m
)
UPDATE onward.workflows AS w SET {wake}, cancel_requested_at = {now} FROM p WHERE w.id = ANY (ARRAY[p.id]);

-- name: fail_crashed
-- Running rows whose worker has died once too often under them; the caller has counted the crash.
WITH ended AS (
    UPDATE onward.workflows AS w SET status = 'failed', result = NULL, error = :error::json, {cleared}
    FROM json_array_elements_text(:ids) AS i (id) WHERE w.id = ANY (ARRAY[i.id]) AND w.status = 'running'
    RETURNING w.id, w.parent_id, w.signals, w.status, w.result, w.error, 0 AS n
), {tell_ends};
