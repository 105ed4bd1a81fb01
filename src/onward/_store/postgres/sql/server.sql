-- What `onward doctor` asks the server about itself. Nothing here needs the schema to be there, or a right that not everybody has;
-- what the server hides from this role comes as null. Each answer is one JSON text.

-- name: look_at_server
SELECT json_build_object(
    'version', current_setting('server_version'), 'number', current_setting('server_version_num')::integer,
    'user', current_user, 'database', current_database(), 'pid', pg_backend_pid(), 'is_standby', pg_is_in_recovery(),
    'clock_us', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    'up_s', extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::bigint,
    'is_encrypted', (SELECT s.ssl FROM pg_stat_ssl AS s WHERE s.pid = pg_backend_pid()),
    'may_see_all', pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
    'settings', (SELECT json_object_agg(s.name, s.setting) FROM pg_settings AS s WHERE s.name IN (
        'autovacuum', 'fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names', 'track_counts',
        'statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout',
        'default_transaction_read_only', 'max_connections', 'superuser_reserved_connections', 'reserved_connections')));

-- name: look_at_connections
-- [all, in this database, ours, this role's limit, this database's limit]; null: no limit.
SELECT json_build_array(
    (SELECT count(*) FROM pg_stat_activity AS a WHERE a.backend_type = 'client backend'),
    (SELECT count(*) FROM pg_stat_activity AS a WHERE a.backend_type = 'client backend' AND a.datname = current_database()),
    (SELECT count(*) FROM pg_stat_activity AS a WHERE a.backend_type = 'client backend' AND a.usename = current_user),
    (SELECT nullif(r.rolconnlimit, -1) FROM pg_roles AS r WHERE r.rolname = current_user),
    (SELECT nullif(d.datconnlimit, -1) FROM pg_database AS d WHERE d.datname = current_database()));

-- name: look_at_horizon
-- What keeps dead rows from being removed: [what, name, seconds or null, transactions since]. Transactions of this database, in
-- two phases prepared ones, and replication slots; a standby with hot_standby_feedback shows as a walsender.
SELECT coalesce(json_agg(json_build_array(h.what, h.name, h.seconds, h.age)), '[]') FROM (
    SELECT CASE WHEN a.backend_type = 'walsender' THEN 'standby' ELSE 'transaction' END AS what,
           format('pid %s (%s, %s, %s)', a.pid, coalesce(a.usename, '?'), coalesce(nullif(a.application_name, ''), 'no name'),
                  coalesce(a.state, 'hidden')) AS name,
           extract(epoch FROM clock_timestamp() - a.xact_start)::bigint AS seconds,
           greatest(age(a.backend_xmin), age(a.backend_xid))::bigint AS age
    FROM pg_stat_activity AS a
    WHERE (a.datname = current_database() OR a.backend_type = 'walsender') AND a.pid <> pg_backend_pid()
      AND a.backend_type <> 'autovacuum worker' AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
    UNION ALL
    SELECT 'prepared', p.gid, extract(epoch FROM clock_timestamp() - p.prepared)::bigint, age(p.transaction)::bigint
    FROM pg_prepared_xacts AS p WHERE p.database = current_database()
    UNION ALL
    SELECT CASE WHEN s.active THEN 'slot' ELSE 'idle slot' END, s.slot_name, NULL, greatest(age(s.xmin), age(s.catalog_xmin))::bigint
    FROM pg_replication_slots AS s WHERE s.xmin IS NOT NULL OR (s.catalog_xmin IS NOT NULL AND NOT s.active)
) AS h;

-- name: look_at_tables
-- [table, live, dead, seconds since the last vacuum of any kind, is autovacuum on for it, transactions since the oldest was frozen]
SELECT coalesce(json_agg(json_build_array(
    t.relname, t.n_live_tup, t.n_dead_tup,
    extract(epoch FROM clock_timestamp() - greatest(t.last_vacuum, t.last_autovacuum))::bigint,
    NOT ('autovacuum_enabled=false' = ANY (coalesce(c.reloptions, '{}'))), age(c.relfrozenxid)::bigint) ORDER BY t.relname), '[]')
FROM pg_stat_user_tables AS t JOIN pg_class AS c ON c.oid = t.relid
WHERE t.schemaname = :schema AND t.relname = ANY (ARRAY(SELECT json_array_elements_text(:tables)));

-- name: look_at_objects
-- What is in the schema: [[kind, name, is valid]]; an index is not valid where its making was interrupted, a trigger that is off.
SELECT coalesce(json_agg(json_build_array(o.kind, o.name, o.is_valid) ORDER BY o.kind, o.name), '[]') FROM (
    SELECT CASE c.relkind WHEN 'i' THEN 'index' WHEN 'v' THEN 'view' ELSE 'table' END AS kind, c.relname AS name,
           coalesce(i.indisvalid AND i.indisready, true) AS is_valid
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    WHERE n.nspname = :schema AND c.relkind IN ('r', 'p', 'v', 'i')
    UNION
    SELECT 'trigger', t.tgname, t.tgenabled IN ('O', 'A') FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND NOT t.tgisinternal
    UNION
    SELECT 'function', p.proname, true FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE n.nspname = :schema
) AS o;

-- name: look_at_rights
-- Of this role: [[table, [rights], may read nothing for want of a policy]], and whether it owns the schema's tables.
SELECT coalesce(json_agg(json_build_array(
    c.relname,
    ARRAY(SELECT p.name FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (name)
          WHERE has_schema_privilege(n.oid, 'USAGE')
            AND (has_table_privilege(c.oid, p.name) OR (p.name <> 'DELETE' AND has_any_column_privilege(c.oid, p.name)))),
    row_security_active(c.oid) AND NOT EXISTS (
        SELECT 1 FROM pg_policy AS y
        WHERE y.polrelid = c.oid AND y.polpermissive
          AND (0 = ANY (y.polroles) OR EXISTS (SELECT 1 FROM unnest(y.polroles) AS r (id) WHERE pg_has_role(current_user, r.id, 'USAGE')))),
    pg_has_role(current_user, c.relowner, 'USAGE')) ORDER BY c.relname), '[]')
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relkind = 'r' AND c.relname = ANY (ARRAY(SELECT json_array_elements_text(:tables)));
