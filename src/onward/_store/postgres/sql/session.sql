-- Transactions and settings. Plans must not depend on statistics: on fresh tables the planner prefers sequential scans and hash
-- joins for the set-based statements, which then take time quadratic in the batch; jit would compile every one of them.

-- name: begin
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

-- name: commit
COMMIT;

-- name: pin_session
-- Once a connection; not in poll-only mode. A commit that was answered must be durable whatever the role's default is.
SELECT set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false),
       set_config('enable_mergejoin', 'off', false), set_config('enable_bitmapscan', 'off', false),
       set_config('enable_indexonlyscan', 'off', false),
       set_config('jit', 'off', false), set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('default_transaction_isolation', 'read committed', false), set_config('lock_timeout', '250ms', false),
       set_config('idle_in_transaction_session_timeout', '10s', false), set_config('statement_timeout', '0', false),
       set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                                        ELSE current_setting('synchronous_commit') END, false);

-- name: pin_transaction
-- At the head of each transaction in poll-only mode, where nothing may outlive it.
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_indexonlyscan', 'off', true),
       set_config('jit', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('lock_timeout', '250ms', true), set_config('idle_in_transaction_session_timeout', '10s', true),
       set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                                        ELSE current_setting('synchronous_commit') END, true);

-- name: wait_for_disk
-- Before the COMMIT of a step's body, in whose transaction the settings are the role's, or the body's own.
SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                                        ELSE current_setting('synchronous_commit') END, true);

-- name: limit_lock_wait
-- A second look at rows that were locked: waits its turn, but briefly.
SELECT set_config('lock_timeout', '30ms', true);

-- name: read_clock
SELECT onward.us({now});

-- name: tell
-- A hint for other processes; losing it costs latency only, so its commit waits for no disk.
SELECT set_config('synchronous_commit', 'off', true), pg_notify(:channel, :news);
