-- oldest library: 0.1.0
-- Times are integer microseconds since 1970 UTC, payloads JSON text. Users query these tables: keep them plain and stable.
-- The short, often-read columns come first: SQLite reads a row from its start and leaves long payloads on their own pages.

CREATE TABLE onward_workflows (
    id                  TEXT PRIMARY KEY NOT NULL,
    type                TEXT NOT NULL,
    queue               TEXT NOT NULL,
    priority            INTEGER NOT NULL,
    status              TEXT NOT NULL
                        CHECK (status IN ('pending', 'running', 'waiting', 'completed', 'failed', 'cancelled')),
    next_run_at         INTEGER CHECK (next_run_at IS NULL OR status IN ('pending', 'waiting')),
    worker              TEXT CHECK ((worker IS NOT NULL) = (status = 'running')),
    epoch               INTEGER NOT NULL DEFAULT 0,
    signals             INTEGER NOT NULL DEFAULT 0,
    run                 INTEGER NOT NULL DEFAULT 0,
    attempts            INTEGER NOT NULL DEFAULT 0,
    crashes             INTEGER NOT NULL DEFAULT 0,
    max_attempts        INTEGER NOT NULL,
    awaited             INTEGER,
    wake_floor          INTEGER,
    divergences         INTEGER NOT NULL DEFAULT 0,
    diverged_by         TEXT CHECK (diverged_by IS NULL OR json_valid(diverged_by)),
    partition           TEXT,
    parent_id           TEXT,
    version             TEXT,
    code_version        TEXT,
    created_at          INTEGER NOT NULL,
    started_at          INTEGER,
    updated_at          INTEGER NOT NULL,
    finished_at         INTEGER,
    deadline            INTEGER,
    timeout_us          INTEGER,
    cancel_requested_at INTEGER,
    digest              TEXT NOT NULL,
    seed                TEXT NOT NULL,
    step                TEXT,
    waiting_for         TEXT,
    tags                TEXT,
    progress            TEXT,
    result              TEXT,
    error               TEXT,
    payload             TEXT NOT NULL
) STRICT;

-- What is claimable, in the order of claiming.
CREATE INDEX onward_workflows_due ON onward_workflows (queue, priority, next_run_at, id) WHERE next_run_at IS NOT NULL;
-- What a worker holds: reconciliation and takeover.
CREATE INDEX onward_workflows_held ON onward_workflows (worker) WHERE status = 'running';
-- Lists for people, newest first.
CREATE INDEX onward_workflows_newest ON onward_workflows (created_at, id);
CREATE INDEX onward_workflows_children ON onward_workflows (parent_id, created_at, id) WHERE parent_id IS NOT NULL;
CREATE INDEX onward_workflows_diverged ON onward_workflows (next_run_at, id) WHERE diverged_by IS NOT NULL;
-- What a pruning may delete, with all that descends from it, oldest first.
CREATE INDEX onward_workflows_finished ON onward_workflows (finished_at, id) WHERE parent_id IS NULL AND finished_at IS NOT NULL;

CREATE TABLE onward_journal (
    workflow_id TEXT NOT NULL,
    seq         INTEGER NOT NULL,
    key         TEXT NOT NULL,
    kind        TEXT NOT NULL,
    struck      INTEGER NOT NULL DEFAULT 0,
    tries       INTEGER NOT NULL DEFAULT 0,
    started_at  INTEGER,
    finished_at INTEGER NOT NULL,
    digest      TEXT,
    arguments   TEXT,
    result      TEXT,
    error       TEXT,
    PRIMARY KEY (workflow_id, seq)
) STRICT, WITHOUT ROWID;

-- `is_read` rows stay until the workflow ends, without their payload: their token keeps a repeated signal out.
CREATE TABLE onward_mailbox (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    workflow_id TEXT NOT NULL,
    kind        TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    name        TEXT NOT NULL DEFAULT '',
    token       TEXT,
    is_read     INTEGER NOT NULL DEFAULT 0,
    payload     TEXT,
    error       TEXT
) STRICT;

CREATE INDEX onward_mailbox_unread ON onward_mailbox (workflow_id, id) WHERE is_read = 0;
CREATE UNIQUE INDEX onward_mailbox_token ON onward_mailbox (workflow_id, token);

-- Who waits for the end of a workflow that is not its child.
CREATE TABLE onward_waiters (
    target     TEXT NOT NULL,
    waiter     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (target, waiter)
) STRICT, WITHOUT ROWID;

CREATE INDEX onward_waiters_waiting ON onward_waiters (waiter);

-- Steps between two tries.
CREATE TABLE onward_step_retries (
    workflow_id TEXT NOT NULL,
    key         TEXT NOT NULL,
    tries       INTEGER NOT NULL,
    next_at     INTEGER NOT NULL,
    error       TEXT,
    PRIMARY KEY (workflow_id, key)
) STRICT, WITHOUT ROWID;

-- Roots whose tree is being pruned over several transactions; `position` is where the next one goes on, null until it is known
-- that all of the tree has finished before `finished_before`.
CREATE TABLE onward_prunings (
    root            TEXT PRIMARY KEY NOT NULL,
    finished_before INTEGER NOT NULL,
    position        TEXT
) STRICT, WITHOUT ROWID;

-- A move to another database (`onward copy`): `source`, where the workflows of this one went, or `target`, where they come from.
-- While a source is fenced, or a target is not open yet (`ended_at` null), triggers refuse every write; `is_writing` is true only
-- inside the transactions of the copy itself. `position` is what the copy has reached.
CREATE TABLE onward_moving (
    role       TEXT PRIMARY KEY NOT NULL CHECK (role IN ('source', 'target')),
    copy_id    TEXT NOT NULL,
    url        TEXT NOT NULL,
    began_at   INTEGER NOT NULL,
    ended_at   INTEGER,
    is_writing INTEGER NOT NULL DEFAULT 0,
    position   TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE onward_workers (
    id           TEXT PRIMARY KEY NOT NULL,
    name         TEXT NOT NULL,
    host         TEXT NOT NULL,
    pid          INTEGER NOT NULL,
    queues       TEXT NOT NULL,
    types        TEXT NOT NULL,
    code_version TEXT NOT NULL,
    started_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    is_dead      INTEGER NOT NULL DEFAULT 0
) STRICT;

-- For people: the life of each workflow in words, the last recorded step, times as text. Never the seed.
CREATE VIEW onward_overview AS
SELECT
    id, type, queue, status,
    CASE
        WHEN status = 'waiting' THEN 'waiting'
        WHEN status = 'pending' AND waiting_for IS NOT NULL THEN 'sleeping'
        WHEN status = 'pending' AND diverged_by IS NOT NULL THEN 'needs review'
        WHEN status = 'pending' AND attempts > 0 THEN 'backing off'
        WHEN status = 'pending' AND epoch = 0 THEN 'queued'
        ELSE status
    END AS state,
    (SELECT j.key FROM onward_journal AS j
     WHERE j.workflow_id = w.id AND j.struck = 0 AND j.kind = 'step' ORDER BY j.seq DESC LIMIT 1) AS step,
    waiting_for, attempts, max_attempts, crashes, worker, parent_id, tags, progress,
    strftime('%Y-%m-%dT%H:%M:%SZ', created_at / 1000000, 'unixepoch') AS created,
    strftime('%Y-%m-%dT%H:%M:%SZ', next_run_at / 1000000, 'unixepoch') AS next_run,
    strftime('%Y-%m-%dT%H:%M:%SZ', finished_at / 1000000, 'unixepoch') AS finished,
    error
FROM onward_workflows AS w;
