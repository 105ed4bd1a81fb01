-- The quick flush (flush.py): one INSERT into a view of the writer's own connection; its trigger checks and writes a whole batch.
-- In autocommit the statement takes the file's write lock before it reads anything and has committed when it returns. Every
-- parameter but :now is a JSON array of operations, as they are (operations.py), or null. Rows are found by primary keys.

-- name: view
CREATE TEMP VIEW onward_flush (entries, parks, finishes, now) AS SELECT NULL, NULL, NULL, NULL;

-- name: flush
INSERT INTO temp.onward_flush (entries, parks, finishes, now) VALUES (:entries, :parks, :finishes, :now);

-- name: trigger
-- JournalOp [fence, [entry], …], ParkOp [fence, seen signals, next_run_at, is waiting, waiting_for, retries, awaited, wake_floor],
-- FinishOp [fence, status, result, error, cancels children, spends an attempt]; a fence is [id, worker, epoch].
CREATE TEMP TRIGGER onward_flush_written INSTEAD OF INSERT ON onward_flush
BEGIN
    SELECT raise(ABORT, 'onward: attention')
    FROM json_each(NEW.entries) AS o
    WHERE NOT EXISTS (
        SELECT 1 FROM onward_workflows AS w
        WHERE w.id = json_extract(o.value, '$[0][0]')
          AND w.epoch = json_extract(o.value, '$[0][2]') AND w.worker = json_extract(o.value, '$[0][1]'));

    SELECT raise(ABORT, 'onward: attention')
    FROM json_each(NEW.parks) AS o
    WHERE NOT EXISTS (
        SELECT 1 FROM onward_workflows AS w
        WHERE w.id = json_extract(o.value, '$[0][0]')
          AND w.epoch = json_extract(o.value, '$[0][2]') AND w.worker = json_extract(o.value, '$[0][1]'));

    -- An end that somebody waits for, or that leaves something to be deleted, is written the general way.
    SELECT raise(ABORT, 'onward: attention')
    FROM json_each(NEW.finishes) AS o
    WHERE NOT EXISTS (
        SELECT 1 FROM onward_workflows AS w
        WHERE w.id = json_extract(o.value, '$[0][0]')
          AND w.epoch = json_extract(o.value, '$[0][2]') AND w.worker = json_extract(o.value, '$[0][1]')
          AND w.signals = 0 AND w.parent_id IS NULL
          AND NOT EXISTS (SELECT 1 FROM onward_waiters AS t WHERE t.target = w.id)
          AND NOT EXISTS (SELECT 1 FROM onward_step_retries AS r WHERE r.workflow_id = w.id));

    INSERT INTO onward_journal
        (workflow_id, seq, key, kind, finished_at, result, error, digest, arguments, tries, started_at)
    SELECT json_extract(value, '$[0][0]'), json_extract(value, '$[1][0][0]'), json_extract(value, '$[1][0][1]'),
           json_extract(value, '$[1][0][2]'), json_extract(value, '$[1][0][3]'), json_extract(value, '$[1][0][4]'),
           json_extract(value, '$[1][0][5]'), json_extract(value, '$[1][0][6]'), json_extract(value, '$[1][0][7]'),
           json_extract(value, '$[1][0][8]'), json_extract(value, '$[1][0][9]')
    FROM json_each(NEW.entries);

    UPDATE onward_workflows SET
        status = CASE WHEN signals = p.seen AND p.is_waiting THEN 'waiting' ELSE 'pending' END,
        next_run_at = CASE WHEN signals <> p.seen THEN NEW.now WHEN p.is_waiting THEN p.next_run_at
                           ELSE coalesce(p.next_run_at, NEW.now) END,
        worker = NULL, waiting_for = p.waiting_for, awaited = p.awaited, wake_floor = p.wake_floor,
        divergences = 0, diverged_by = NULL, updated_at = NEW.now
    FROM (SELECT json_extract(value, '$[0][0]') AS id, json_extract(value, '$[1]') AS seen,
                 json_extract(value, '$[2]') AS next_run_at, json_extract(value, '$[3]') AS is_waiting,
                 json_extract(value, '$[4]') AS waiting_for, json_extract(value, '$[6]') AS awaited,
                 json_extract(value, '$[7]') AS wake_floor
          FROM json_each(NEW.parks)) AS p
    WHERE onward_workflows.id = p.id;

    UPDATE onward_workflows SET
        status = p.status, result = p.result, error = p.error, attempts = attempts + p.spends, worker = NULL,
        next_run_at = NULL, waiting_for = NULL, awaited = NULL, wake_floor = NULL, divergences = 0, diverged_by = NULL,
        updated_at = NEW.now, finished_at = NEW.now
    FROM (SELECT json_extract(value, '$[0][0]') AS id, json_extract(value, '$[1]') AS status,
                 json_extract(value, '$[2]') AS result, json_extract(value, '$[3]') AS error,
                 json_extract(value, '$[5]') AS spends
          FROM json_each(NEW.finishes)) AS p
    WHERE onward_workflows.id = p.id;
END

-- name: record_one
-- A single entry, then the fence (worker, epoch, id) under which it is written; no row if that does not hold.
INSERT INTO onward_journal
    (workflow_id, seq, key, kind, finished_at, result, error, digest, arguments, tries, started_at)
SELECT w.id, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
FROM onward_workflows AS w WHERE w.worker = ? AND w.epoch = ? AND w.id = ?;
