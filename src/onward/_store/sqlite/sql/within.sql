-- What a client writes in a caller's transaction, beside starts.sql and mailbox.sql. The connection is the caller's: nothing
-- here may depend on its settings.

-- name: list_files
-- (number, name, file). Not as SELECT … FROM pragma_database_list, which would give the transaction its snapshot here.
PRAGMA database_list;

-- name: take_write_lock
-- Changes nothing. First of all statements: in a transaction that has read nothing yet it waits for its turn (the connection's
-- own time-out) and then sees what is there; and a driver that opens transactions by itself opens one now.
DELETE FROM onward_migrations WHERE 0;

-- name: has_schema
SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'onward_migrations';

-- name: read_migrations
SELECT json_group_array(json_array(m.number, m.name, m.oldest_library, m.checksum))
FROM (SELECT * FROM onward_migrations ORDER BY number) AS m;

-- name: open_savepoint
SAVEPOINT onward;

-- name: undo_to_savepoint
ROLLBACK TO onward;

-- name: release_savepoint
RELEASE onward;
