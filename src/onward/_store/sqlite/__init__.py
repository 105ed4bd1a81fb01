"""The store in one SQLite file: one writer thread, a few readers, a connection for the lease thread."""
