-- oldest library: 0.1.0
-- Functions for every other language, for triggers, pg_cron and Supabase: documented in docs/reference-sql.md; their signatures do
-- not change. They run with the rights of the schema's owner (who calls them needs EXECUTE and nothing else) under a search_path
-- of their own. All of them act within the caller's transaction, and nothing is seen of it before that commits.

CREATE FUNCTION onward.same_arguments(a json, b json) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    AS $$ SELECT CASE
        WHEN json_typeof(a) = json_typeof(b) THEN a::jsonb = b::jsonb
        WHEN json_typeof(a) = 'object' AND json_typeof(b) = 'array' THEN
            (SELECT coalesce(jsonb_agg(e.value ORDER BY e.n), '[]') FROM json_each(a) WITH ORDINALITY AS e (key, value, n)) = b::jsonb
        WHEN json_typeof(a) = 'array' AND json_typeof(b) = 'object' THEN
            (SELECT coalesce(jsonb_agg(e.value ORDER BY e.n), '[]') FROM json_each(b) WITH ORDINALITY AS e (key, value, n)) = a::jsonb
        ELSE false END $$;
COMMENT ON FUNCTION onward.same_arguments(json, json) IS
    'whether two stored arguments are the same call: equal as JSON, or by name and by position with the same values in order';

CREATE FUNCTION onward.random_hex() RETURNS text LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT left(encode(sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')), 'hex'), 32) $$;
COMMENT ON FUNCTION onward.random_hex() IS '128 random bits: a seed, or a token';

CREATE FUNCTION onward.tell_workers() RETURNS void LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT pg_notify('onward:' || n.nspname, '') FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.oid = 'onward.workflows'::regclass
    $$;
COMMENT ON FUNCTION onward.tell_workers() IS 'wakes the workers of this schema once the transaction commits';

CREATE FUNCTION onward.start(
    type text,
    args json DEFAULT '{}',
    id text DEFAULT NULL,
    queue text DEFAULT 'default',
    priority integer DEFAULT 0,
    partition text DEFAULT NULL,
    delay interval DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    timeout interval DEFAULT NULL,
    tags json DEFAULT NULL,
    max_attempts integer DEFAULT 5
) RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    moment CONSTANT timestamptz := clock_timestamp();
    bits text;
    new_id text;
    other record;
BEGIN
    IF start.type IS NULL OR length(start.type) NOT BETWEEN 1 AND 200 OR start.type ~ '[[:cntrl:]/#]' THEN
        RAISE EXCEPTION 'type must be 1 to 200 printable characters without / and #, not %', coalesce(quote_literal(start.type), 'null')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF start.id IS NOT NULL AND (length(start.id) NOT BETWEEN 1 AND 200 OR start.id ~ '[[:cntrl:]/]') THEN
        RAISE EXCEPTION 'id must be 1 to 200 printable characters without /, not %', quote_literal(start.id)
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF start.queue IS NULL OR length(start.queue) NOT BETWEEN 1 AND 200 OR start.queue ~ '[[:cntrl:]/#]' THEN
        RAISE EXCEPTION 'queue must be 1 to 200 printable characters without / and #, not %', coalesce(quote_literal(start.queue), 'null')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF start.partition IS NOT NULL AND (length(start.partition) NOT BETWEEN 1 AND 200 OR start.partition ~ '[[:cntrl:]]') THEN
        RAISE EXCEPTION 'partition must be 1 to 200 printable characters, not %', quote_literal(start.partition)
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF start.args IS NULL OR json_typeof(start.args) NOT IN ('object', 'array') THEN
        RAISE EXCEPTION 'args must be a JSON object (by parameter name) or array (by position), not %',
            coalesce(json_typeof(start.args), 'null') USING ERRCODE = 'invalid_parameter_value';
    ELSIF octet_length(start.args::text) > 2000000 THEN
        RAISE EXCEPTION 'args take % bytes, more than the 2000000 allowed', octet_length(start.args::text)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'store them elsewhere and pass a reference';
    ELSIF start.tags IS NOT NULL AND (json_typeof(start.tags) <> 'object'
            OR EXISTS (SELECT FROM json_each(start.tags) AS t WHERE json_typeof(t.value) <> 'string')) THEN
        RAISE EXCEPTION 'tags must be a JSON object of strings' USING ERRCODE = 'invalid_parameter_value';
    ELSIF start.priority IS NULL OR start.max_attempts IS NULL OR start.max_attempts NOT BETWEEN 1 AND 1000000 THEN
        RAISE EXCEPTION 'priority must not be null, and max_attempts must lie between 1 and 1000000'
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (start.delay IS NOT NULL AND start.run_at IS NOT NULL) OR start.delay < interval '0' THEN
        RAISE EXCEPTION 'give a delay or run_at, not both, and no negative delay' USING ERRCODE = 'invalid_parameter_value';
    ELSIF start.timeout <= interval '0' THEN
        RAISE EXCEPTION 'timeout must be longer than nothing' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    bits := replace(gen_random_uuid()::text, '-', '');
    new_id := coalesce(  -- else a UUIDv7, which sorts by time
        start.id, (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '7' || substr(bits, 14))::uuid::text);
    LOOP
        INSERT INTO onward.workflows (
            id, type, payload, digest, seed, queue, priority, partition, tags, max_attempts, next_run_at, timeout_us, status,
            created_at, updated_at)
        VALUES (
            new_id, start.type, start.args,
            'sql:' || left(encode(sha256(convert_to(start.args::jsonb::text, 'UTF8')), 'hex'), 16), onward.random_hex(),
            start.queue, start.priority, start.partition, start.tags, start.max_attempts,
            coalesce(start.run_at, moment + start.delay, moment), (extract(epoch FROM start.timeout) * 1000000)::bigint, 'pending',
            moment, moment)
        ON CONFLICT (id) DO NOTHING;
        IF FOUND THEN
            PERFORM onward.tell_workers();
            RETURN new_id;
        END IF;
        SELECT w.type, onward.same_arguments(w.payload, start.args) AS is_same INTO other
        FROM onward.workflows AS w WHERE w.id = new_id;
        IF NOT FOUND THEN
            CONTINUE;  -- pruned meanwhile
        ELSIF other.type = start.type AND other.is_same THEN
            RETURN new_id;
        END IF;
        RAISE EXCEPTION 'there is a workflow % already, of type % with other arguments', quote_literal(new_id), quote_literal(other.type)
            USING ERRCODE = 'unique_violation', HINT = 'an id belongs to one call: choose another id, or the same type and arguments';
    END LOOP;
END $$;
COMMENT ON FUNCTION onward.start IS
    'starts a workflow and returns its id; a given id that exists with the same type and arguments is that workflow';

CREATE FUNCTION onward.signal(id text, name text, value json DEFAULT 'null', token text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    state text;
BEGIN
    IF signal.name IS NULL OR length(signal.name) NOT BETWEEN 1 AND 200 OR signal.name ~ '[[:cntrl:]/#]' THEN
        RAISE EXCEPTION 'name must be 1 to 200 printable characters without / and #, not %', coalesce(quote_literal(signal.name), 'null')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF octet_length(signal.value::text) > 2000000 THEN
        RAISE EXCEPTION 'value takes % bytes, more than the 2000000 allowed', octet_length(signal.value::text)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'store it elsewhere and pass a reference';
    END IF;
    SELECT w.status INTO state FROM onward.workflows AS w WHERE w.id = signal.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no workflow %', coalesce(quote_literal(signal.id), 'null') USING ERRCODE = 'no_data_found';
    ELSIF state IN ('completed', 'failed', 'cancelled') THEN
        RETURN false;
    END IF;
    INSERT INTO onward.outbox (workflow_id, kind, name, payload, token)
    VALUES (signal.id, 'signal', signal.name, coalesce(signal.value, 'null'), coalesce(signal.token, onward.random_hex()));
    RETURN true;
END $$;
COMMENT ON FUNCTION onward.signal IS
    'sends a message to a workflow, delivered at the commit; false if the workflow has ended. A token is delivered once';

CREATE FUNCTION onward.cancel(id text)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    state text;
BEGIN
    SELECT w.status INTO state FROM onward.workflows AS w WHERE w.id = cancel.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no workflow %', coalesce(quote_literal(cancel.id), 'null') USING ERRCODE = 'no_data_found';
    ELSIF state IN ('completed', 'failed', 'cancelled') THEN
        RETURN false;
    END IF;
    INSERT INTO onward.outbox (workflow_id, kind) VALUES (cancel.id, 'cancel');
    RETURN true;
END $$;
COMMENT ON FUNCTION onward.cancel IS 'asks a workflow to end, at the commit; false if it has ended';

CREATE FUNCTION onward.result(id text)
RETURNS json LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN w.status = 'completed' THEN json_build_object('id', w.id, 'status', w.status, 'result', w.result)
        WHEN w.status IN ('failed', 'cancelled') THEN json_build_object(
            'id', w.id, 'status', w.status,
            'error', json_build_object('type', w.error ->> 'type', 'message', w.error ->> 'message'))
        ELSE json_build_object('id', w.id, 'status', w.status) END
    FROM onward.workflows AS w WHERE w.id = result.id
$$;
COMMENT ON FUNCTION onward.result IS
    'a JSON object with the id and status of a workflow, its result once completed, its error once failed; null where there is none';

-- Nobody may call them unless it is granted, and the view shows what its reader may read (from version 15 on; in 14 it shows all,
-- to those it is granted to). What Supabase grants to its web roles by default, in the schema public, is taken back.
REVOKE ALL ON FUNCTION onward.start, onward.signal, onward.cancel, onward.result FROM PUBLIC;
DO $$
DECLARE
    stranger text;
BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        EXECUTE 'ALTER VIEW onward.overview SET (security_invoker = on)';
    END IF;
    FOR stranger IN SELECT quote_ident(r.rolname) FROM pg_roles AS r WHERE r.rolname IN ('anon', 'authenticated') LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION onward.start, onward.signal, onward.cancel, onward.result FROM %s', stranger);
        EXECUTE format('REVOKE ALL ON onward.workflows, onward.journal, onward.mailbox, onward.outbox, onward.waiters, '
                       'onward.step_retries, onward.workers, onward.moving, onward.migrations, onward.overview FROM %s', stranger);
    END LOOP;
END $$;
