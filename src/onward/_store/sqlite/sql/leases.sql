-- Workers and their leases. Writes run inside BEGIN IMMEDIATE on the lease thread's own connection.

-- name: register_worker
INSERT INTO onward_workers (id, name, host, pid, queues, types, code_version, started_at, expires_at)
VALUES (:id, :name, :host, :pid, :queues, :types, :code_version, :now, :now + :lease);

-- name: renew_lease
UPDATE onward_workers SET expires_at = :now + :lease WHERE id = :id AND is_dead = 0;

-- name: retire_worker
DELETE FROM onward_workers WHERE id = :id;

-- name: other_workers
SELECT id, expires_at FROM onward_workers WHERE id <> :id AND is_dead = 0;

-- name: mark_dead
-- One winner: the caller holds the worker's lock file (or saw the very lease `expires_at` run out) and finds it not dead yet.
UPDATE onward_workers SET is_dead = 1 WHERE id = :id AND is_dead = 0 AND (:is_lock_free OR expires_at = :expires_at);

-- name: orphan_workers
-- Ids in running rows whose worker is dead or absent; skips from id to id in the index of held rows.
WITH RECURSIVE k (worker) AS (
    SELECT (SELECT min(w.worker) FROM onward_workflows AS w WHERE w.status = 'running')
    UNION ALL
    SELECT (SELECT min(w.worker) FROM onward_workflows AS w WHERE w.status = 'running' AND w.worker > k.worker)
    FROM k WHERE k.worker IS NOT NULL
)
SELECT json_group_array(k.worker) FROM k
WHERE k.worker IS NOT NULL AND NOT EXISTS (SELECT 1 FROM onward_workers AS a WHERE a.id = k.worker AND a.is_dead = 0);

-- name: orphan_rows
-- [id, crashes] of the running rows of these workers
SELECT json_group_array(json_array(w.id, w.crashes))
FROM json_each(:workers) AS k CROSS JOIN onward_workflows AS w WHERE w.status = 'running' AND w.worker = k.value;

-- name: count_crash
UPDATE onward_workflows SET crashes = crashes + 1, epoch = epoch + 1 WHERE id IN (SELECT value FROM json_each(:ids));

-- name: forget_dead
DELETE FROM onward_workers WHERE is_dead = 1 AND expires_at < :before;
