"""The PostgreSQL store: many workers on many machines. Layout as in the SQLite store, a file a duty."""
