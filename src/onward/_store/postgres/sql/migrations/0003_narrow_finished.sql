-- oldest library: 0.1.0
-- Finished roots, oldest first: pruning. What ends in one flush shares an instant, so that ids would only make the log of every end
-- longer; the statement that reads them sorts those of an instant itself.

DROP INDEX onward.workflows_finished;
CREATE INDEX workflows_finished ON onward.workflows (finished_at) WHERE parent_id IS NULL AND finished_at IS NOT NULL;
