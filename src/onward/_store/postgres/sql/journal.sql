-- Writes of executions: locks, entries, row updates. Each is one statement for a whole batch, fed with one JSON parameter and
-- ordered by id; rows of `workflows` and `journal` are found by their primary keys. All rows that a batch writes are locked by
-- its first statement, own ones and those to be woken alike, in order of id; the later ones therefore meet no lock.
-- Joins say `w.id = ANY (ARRAY[f.id])` where they mean `w.id = f.id`: with the latter the planner may, on a table that it takes
-- for small, walk all of an index in its order and look into the batch for each row; with the former it can only go from the
-- batch to the index.

-- name: fragment_wanted
-- f [id, worker, epoch, ends, takes]: an execution's fence, or with a null worker the target of a signal, cancel, retry or
-- watch. Ends: it may end, so its parent and waiters are wanted too; takes: and its children with theirs.
f AS MATERIALIZED (
    SELECT * FROM json_to_recordset(:fences) AS f (id text, worker text, epoch integer, ends boolean, takes boolean)
), taken AS MATERIALIZED (
    SELECT f.id AS owner, c.id FROM f JOIN onward.workflows AS c ON c.parent_id = ANY (ARRAY[f.id]) WHERE f.takes
), readers AS MATERIALIZED (
    SELECT f.id AS owner, w.parent_id AS id FROM f JOIN onward.workflows AS w ON w.id = ANY (ARRAY[f.id]) WHERE f.ends
    UNION ALL
    SELECT f.id, t.waiter FROM f JOIN onward.waiters AS t ON t.target = ANY (ARRAY[f.id]) WHERE f.ends
    UNION ALL
    SELECT c.owner, t.waiter FROM taken AS c JOIN onward.waiters AS t ON t.target = ANY (ARRAY[c.id])
), wants AS MATERIALIZED (
    SELECT f.id AS owner, f.id, f.worker, f.epoch FROM f WHERE f.worker IS NOT NULL
    UNION ALL
    SELECT f.id, w.id, NULL, NULL FROM f JOIN onward.workflows AS w ON w.id = ANY (ARRAY[f.id]) WHERE f.worker IS NULL
    UNION ALL
    SELECT r.owner, w.id, NULL, NULL FROM readers AS r JOIN onward.workflows AS w ON w.id = ANY (ARRAY[r.id])
    UNION ALL
    SELECT c.owner, c.id, NULL, NULL FROM taken AS c
), wanted AS MATERIALIZED (
    SELECT n.id, max(n.worker) AS worker, max(n.epoch) AS epoch, count(n.worker) AS fences
    FROM wants AS n GROUP BY n.id ORDER BY n.id
)

-- name: lock_or_refuse
-- The whole batch or nothing: every row is there, free to lock, and every fence holds; else the transaction ends. Answers the
-- server's clock.
WITH {wanted}, locked AS MATERIALIZED (
    SELECT n.fences, n.worker = w.worker AND n.epoch = w.epoch AS is_held
    FROM wanted AS n JOIN onward.workflows AS w ON w.id = ANY (ARRAY[n.id]) ORDER BY w.id FOR UPDATE OF w SKIP LOCKED
)
SELECT CASE WHEN (SELECT count(*) FROM locked WHERE fences = 0 OR (fences = 1 AND is_held)) = (SELECT count(*) FROM wanted)
            THEN onward.us({now}) ELSE onward.refuse() END;

-- name: fragment_own
-- Own rows as one walk along the primary key: `ids` in its order, `epochs` beside them. A row that is gone, locked by somebody or
-- another worker's is missing, so that the epochs do not match.
locked AS MATERIALIZED (
    SELECT w.epoch, w.parent_id FROM onward.workflows AS w
    WHERE w.id = ANY (:ids::text[]) AND w.worker = :worker ORDER BY w.id FOR UPDATE SKIP LOCKED
)

-- name: lock_own_or_refuse
-- The same for executions of one worker that end nothing and wake nobody.
WITH {own}
SELECT CASE WHEN (SELECT array_agg(l.epoch) FROM locked AS l) = :epochs::integer[] THEN onward.us({now}) ELSE onward.refuse() END;

-- name: lock_ending_or_refuse
-- The same where some of them end (`ends`, beside the ids; `ending`, the ids of those), so that whoever hears of it is wanted, too.
WITH {own}, readers AS MATERIALIZED (
    SELECT l.parent_id AS id FROM (SELECT l.parent_id, row_number() OVER () AS n FROM locked AS l) AS l
    WHERE l.parent_id IS NOT NULL AND (:ends::boolean[])[l.n]
    UNION
    SELECT t.waiter FROM onward.waiters AS t WHERE t.target = ANY (:ending::text[])
), wanted AS MATERIALIZED (
    SELECT w.id FROM readers AS r JOIN onward.workflows AS w ON w.id = ANY (ARRAY[r.id])
), woken AS MATERIALIZED (
    SELECT w.id FROM onward.workflows AS w WHERE w.id = ANY (ARRAY(SELECT n.id FROM wanted AS n)) ORDER BY w.id FOR UPDATE SKIP LOCKED
)
SELECT CASE WHEN (SELECT array_agg(l.epoch) FROM locked AS l) = :epochs::integer[]
             AND (SELECT count(*) FROM woken) = (SELECT count(*) FROM wanted)
            THEN onward.us({now}) ELSE onward.refuse() END;

-- name: lock_rows
-- What could be locked, with what is in it, and who needs what: [[id, worker, epoch]], [[owner, id, is there]].
WITH {wanted}, locked AS MATERIALIZED (
    SELECT w.id, w.worker, w.epoch
    FROM wanted AS n JOIN onward.workflows AS w ON w.id = ANY (ARRAY[n.id]) ORDER BY w.id FOR UPDATE OF w SKIP LOCKED
)
SELECT json_build_array(
    (SELECT coalesce(json_agg(json_build_array(l.id, l.worker, l.epoch)), '[]') FROM locked AS l),
    (SELECT coalesce(json_agg(json_build_array(
        n.owner, n.id, n.worker IS NULL OR EXISTS (SELECT 1 FROM onward.workflows AS w WHERE w.id = ANY (ARRAY[n.id])))), '[]')
     FROM wants AS n));

-- name: read_entries
-- After an unknown commit: what is there under these (workflow, seq).
SELECT coalesce(json_agg(json_build_array(
    j.workflow_id, j.seq, j.key, j.kind, onward.us(j.finished_at), j.result::text, j.error::text, j.digest, j.arguments,
    j.tries, onward.us(j.started_at))), '[]')
FROM json_to_recordset(:entries) AS e (w text, s integer)
JOIN onward.journal AS j ON j.workflow_id = ANY (ARRAY[e.w]) AND j.seq = e.s;

-- name: fragment_entries
json_to_recordset(:entries) AS e (
    w text, s integer, k text, t text, f bigint, r text, e text, d text, a text, n integer, b bigint)

-- name: insert_entries
INSERT INTO onward.journal
    (workflow_id, seq, key, kind, finished_at, result, error, digest, arguments, tries, started_at)
SELECT e.w, e.s, e.k, e.t, onward.at(e.f), e.r::json, e.e::json, e.d, e.a, e.n, onward.at(e.b) FROM {entries};

-- name: record_entries
-- The lock, the fences and the entries in one statement, which is then a transaction of its own.
WITH {own}, held AS MATERIALIZED (
    SELECT CASE WHEN (SELECT array_agg(l.epoch) FROM locked AS l) = :epochs::integer[] THEN onward.us({now}) ELSE onward.refuse() END
        AS now
), recorded AS (
    INSERT INTO onward.journal
        (workflow_id, seq, key, kind, finished_at, result, error, digest, arguments, tries, started_at)
    SELECT e.w, e.s, e.k, e.t, onward.at(e.f), e.r::json, e.e::json, e.d, e.a, e.n, onward.at(e.b) FROM held CROSS JOIN {entries}
)
SELECT h.now FROM held AS h;

-- name: record_entry
-- The same for a single entry, its columns as parameters; nothing is answered where it is not written.
INSERT INTO onward.journal
    (workflow_id, seq, key, kind, finished_at, result, error, digest, arguments, tries, started_at)
SELECT w.id, :seq::integer, :key, :kind, onward.at(:finished_at), :result::json, :error::json, :digest, :arguments,
    :tries::integer, onward.at(:started_at)
FROM onward.workflows AS w
WHERE w.id = :id AND w.worker = :worker AND w.epoch = :epoch::integer FOR UPDATE SKIP LOCKED
RETURNING onward.us({now});

-- name: strike_entries
UPDATE onward.journal AS j SET struck = true
FROM json_to_recordset(:rows) AS e (w text, s integer) WHERE j.workflow_id = ANY (ARRAY[e.w]) AND j.seq = e.s;

-- name: note_progress
-- A row whose counters are 0 already is not written for their sake.
UPDATE onward.workflows AS w SET
    step = coalesce(p.step, w.step),
    progress = coalesce(p.progress::json, w.progress),
    attempts = CASE WHEN p.resets THEN 0 ELSE w.attempts END,
    crashes = CASE WHEN p.resets THEN 0 ELSE w.crashes END,
    divergences = CASE WHEN p.resets THEN 0 ELSE w.divergences END,
    diverged_by = CASE WHEN p.resets THEN NULL ELSE w.diverged_by END,
    updated_at = {now}
FROM json_to_recordset(:rows) AS p (id text, worker text, epoch integer, step text, progress text, resets boolean)
WHERE w.id = ANY (ARRAY[p.id]) AND w.worker = p.worker AND w.epoch = p.epoch
  AND (p.progress IS NOT NULL OR p.step IS NOT NULL OR w.attempts > 0 OR w.crashes > 0 OR w.divergences > 0);

-- name: park_rows
-- A signal that came since `seen` is not slept through.
UPDATE onward.workflows AS w SET
    status = CASE WHEN w.signals = p.seen AND p.is_waiting THEN 'waiting' ELSE 'pending' END,
    next_run_at = CASE WHEN w.signals <> p.seen THEN {now} WHEN p.is_waiting THEN onward.at(p.next_run_at)
                       ELSE coalesce(onward.at(p.next_run_at), {now}) END,
    worker = NULL, waiting_for = p.waiting_for::json, awaited = p.awaited, wake_floor = onward.at(p.wake_floor),
    divergences = 0, diverged_by = NULL, updated_at = {now}
FROM json_to_recordset(:rows) AS p (
    id text, worker text, epoch integer, seen integer, next_run_at bigint, is_waiting boolean, waiting_for text,
    awaited integer, wake_floor bigint)
WHERE w.id = ANY (ARRAY[p.id]) AND w.worker = p.worker AND w.epoch = p.epoch;

-- name: fail_attempts
-- A cancel that came since does not wait for the back-off (index mailbox_unread).
UPDATE onward.workflows AS w SET
    status = 'pending', worker = NULL, attempts = w.attempts + 1, error = p.error::json,
    next_run_at = {now} + CASE WHEN EXISTS (
        SELECT 1 FROM onward.mailbox AS m WHERE m.workflow_id = p.id AND NOT m.is_read AND m.kind = 'cancel'
    ) THEN 0 ELSE p.backoff END * interval '1 microsecond',
    divergences = 0, diverged_by = NULL, updated_at = {now}
FROM json_to_recordset(:rows) AS p (id text, worker text, epoch integer, error text, backoff bigint)
WHERE w.id = ANY (ARRAY[p.id]) AND w.worker = p.worker AND w.epoch = p.epoch;

-- name: release_rows
-- The code versions that diverged are kept, each with the end of its back-off, until the history is accepted.
UPDATE onward.workflows AS w SET
    status = 'pending', worker = NULL, next_run_at = {now} + p.delay * interval '1 microsecond',
    error = coalesce(p.error::json, w.error),
    divergences = w.divergences + (p.diverged_by IS NOT NULL)::integer,
    diverged_by = CASE
        WHEN p.diverged_by IS NULL THEN w.diverged_by
        ELSE coalesce(w.diverged_by, '{}') || jsonb_build_object(p.diverged_by, onward.us({now}) + p.delay) END,
    updated_at = {now}
FROM json_to_recordset(:rows) AS p (id text, worker text, epoch integer, delay bigint, error text, diverged_by text)
WHERE w.id = ANY (ARRAY[p.id]) AND w.worker = p.worker AND w.epoch = p.epoch;

-- name: upsert_retries
-- The last one given counts where a key comes twice.
INSERT INTO onward.step_retries (workflow_id, key, tries, next_at, error)
SELECT DISTINCT ON (r.w, r.k) r.w, r.k, r.n, onward.at(r.t), r.e::json
FROM ROWS FROM (json_to_recordset(:rows) AS (w text, k text, n integer, t bigint, e text)) WITH ORDINALITY
    AS r (w, k, n, t, e, i)
ORDER BY r.w, r.k, r.i DESC
ON CONFLICT (workflow_id, key) DO UPDATE SET tries = excluded.tries, next_at = excluded.next_at, error = excluded.error;

-- name: delete_retries
DELETE FROM onward.step_retries AS r
USING json_to_recordset(:rows) AS p (w text, k text) WHERE r.workflow_id = ANY (ARRAY[p.w]) AND r.key = p.k;

-- name: delete_retries_of
DELETE FROM onward.step_retries AS r
USING json_array_elements_text(:ids) AS i (id) WHERE r.workflow_id = ANY (ARRAY[i.id]);

-- name: is_held
-- Before a transactional step's body is run.
SELECT 1 FROM onward.workflows AS w WHERE w.id = :id AND w.worker = :worker AND w.epoch = :epoch;

-- name: is_same_step
-- At its end: a body that has ended the transaction and begun another has lost the mark.
SELECT current_setting('onward_step.mark', true) = :token;

-- name: lock_step_or_refuse
-- The fence of a transactional step; waits, for nothing but this one step depends on it.
WITH f AS MATERIALIZED (
    SELECT * FROM json_to_recordset(:fences) AS f (id text, worker text, epoch integer)
), locked AS MATERIALIZED (
    SELECT f.worker = w.worker AND f.epoch = w.epoch AS is_held
    FROM f JOIN onward.workflows AS w ON w.id = ANY (ARRAY[f.id]) ORDER BY w.id FOR UPDATE OF w
)
SELECT CASE WHEN (SELECT count(*) FROM locked WHERE is_held) = (SELECT count(*) FROM f)
            THEN onward.us({now}) ELSE onward.refuse() END;
