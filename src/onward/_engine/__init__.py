"""The engine: replay core, runner, committer, dispatcher and lease. It imports no database driver."""
