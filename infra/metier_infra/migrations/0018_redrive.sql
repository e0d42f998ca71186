-- Where in its run something was asked (JSON: the node's task, what, how often before), so that a run that goes on where this one ended finds it under
-- its own id; NULL for what was asked before.
ALTER TABLE calls ADD COLUMN slot text;
ALTER TABLE decisions ADD COLUMN slot text;
CREATE INDEX runs_origin ON runs (origin) WHERE origin IS NOT NULL
