-- Workers and their leases, on the lease thread's own connection. `workers` is a handful of rows, found by primary key or read
-- whole.

-- name: read_own_clock
SELECT onward.us({now});

-- name: hold_proof
-- The lock that proves this connection's process alive; it falls with the connection. Looked at in pg_locks, never tried.
SELECT pg_try_advisory_lock(:class, :key);

-- name: drop_proof
SELECT pg_advisory_unlock(:class, :key);

-- name: register_worker
INSERT INTO onward.workers (id, name, host, pid, queues, types, code_version, started_at, renewed_at, expires_at, lock_key)
SELECT :id, :name, :host, :pid, :queues, :types, :code_version, t.now, t.now, t.now + :lease * interval '1 microsecond', :key
FROM (SELECT {now} AS now) AS t;

-- name: renew_lease
-- [clock, as in look_for_dead]; nothing where the worker is dead or gone.
WITH {late}, renewed AS (
    UPDATE onward.workers AS k SET renewed_at = t.now, expires_at = t.now + :lease * interval '1 microsecond'
    FROM t WHERE k.id = :id AND NOT k.is_dead RETURNING 1
)
SELECT {seen} FROM renewed;

-- name: retire_worker
DELETE FROM onward.workers WHERE id = :id;

-- name: fragment_late
-- Other workers that may be dead: [clock, [[id, is expired, may be judged by its lock, renewed_at]]]. A lock that is free is a
-- suspicion only, and none while the server, or this connection, is younger than a lease: a restart frees all locks.
t AS MATERIALIZED (SELECT {now} AS now), held AS MATERIALIZED (
    SELECT l.objid::bigint AS key FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.classid = :class::bigint::oid AND l.objsubid = 2
      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
), late AS MATERIALIZED (
    SELECT k.id, k.expires_at <= t.now AS is_expired,
           k.lock_key IS NOT NULL
           AND t.now - pg_postmaster_start_time() > k.expires_at - k.renewed_at
           AND t.now - onward.at(:since) > k.expires_at - k.renewed_at
           AND k.lock_key NOT IN (SELECT h.key FROM held AS h) AS is_free,
           onward.us(k.renewed_at) AS renewed_at
    FROM onward.workers AS k, t
    WHERE k.id <> :id AND NOT k.is_dead AND k.renewed_at < t.now - :late * interval '1 microsecond'
)

-- name: fragment_seen
json_build_array(
    (SELECT onward.us(t.now) FROM t),
    (SELECT coalesce(json_agg(json_build_array(l.id, l.is_expired, l.is_free, l.renewed_at)), '[]') FROM late AS l))

-- name: look_for_dead
WITH {late} SELECT {seen};

-- name: mark_dead
-- One winner: under the row's lock it is still expired, or has not been renewed since its lock was seen free.
UPDATE onward.workers AS k SET is_dead = true
WHERE k.id = :id AND NOT k.is_dead AND (k.expires_at <= {now} OR (:is_free AND onward.us(k.renewed_at) = :renewed_at))
RETURNING 1;

-- name: forget_dead
DELETE FROM onward.workers WHERE is_dead AND expires_at < {now} - interval '7 days';

-- name: fragment_gone
-- gone [worker]: workers that are dead or absent and have running rows. Skips from id to id in the index of held rows.
k (worker) AS (
    SELECT (SELECT w.worker FROM onward.workflows AS w WHERE w.status = 'running' ORDER BY w.worker LIMIT 1)
    UNION ALL
    SELECT (SELECT w.worker FROM onward.workflows AS w WHERE w.status = 'running' AND w.worker > k.worker
            ORDER BY w.worker LIMIT 1)
    FROM k WHERE k.worker IS NOT NULL
), gone AS MATERIALIZED (
    SELECT k.worker FROM k WHERE k.worker IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM onward.workers AS a WHERE a.id = k.worker AND NOT a.is_dead)
)

-- name: look_for_orphans
-- Whether there are any: most looks need no transaction.
WITH RECURSIVE {gone} SELECT EXISTS (SELECT FROM gone);

-- name: release_orphans
-- Running rows whose worker is dead or absent: given back, or counted for the last time. Rows that a last flush still holds are
-- left for the next sweep. [how many given back, ids crashed too often]
WITH RECURSIVE {gone}, found AS MATERIALIZED (
    SELECT w.id, w.crashes FROM gone AS g JOIN onward.workflows AS w ON w.status = 'running' AND w.worker = g.worker
    ORDER BY w.id FOR UPDATE OF w SKIP LOCKED
), released AS (
    UPDATE onward.workflows AS w SET
        status = 'pending', worker = NULL, epoch = w.epoch + 1, crashes = w.crashes + 1, next_run_at = {now}, updated_at = {now}
    FROM found AS f WHERE w.id = ANY (ARRAY[f.id]) AND w.status = 'running' AND f.crashes + 1 < :limit
    RETURNING w.id
), counted AS (
    UPDATE onward.workflows AS w SET crashes = w.crashes + 1, epoch = w.epoch + 1
    FROM found AS f WHERE w.id = ANY (ARRAY[f.id]) AND w.status = 'running' AND f.crashes + 1 >= :limit
    RETURNING w.id
)
SELECT json_build_array(
    (SELECT count(*) FROM released), (SELECT coalesce(json_agg(c.id ORDER BY c.id), '[]') FROM counted AS c));

-- name: lock_readers
-- Parents and waiters of workflows that end, before they are told.
SELECT p.id FROM (
    SELECT w.parent_id AS id FROM json_array_elements_text(:ids) AS i (id) JOIN onward.workflows AS w ON w.id = ANY (ARRAY[i.id])
    UNION
    SELECT t.waiter FROM json_array_elements_text(:ids) AS i (id) JOIN onward.waiters AS t ON t.target = ANY (ARRAY[i.id])
) AS r JOIN onward.workflows AS p ON p.id = ANY (ARRAY[r.id]) ORDER BY p.id FOR UPDATE OF p;
