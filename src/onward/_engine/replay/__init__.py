"""The pure replay core: one execution of one workflow, with no database, clock, thread or network."""
