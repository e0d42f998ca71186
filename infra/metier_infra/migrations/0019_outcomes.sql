-- What really came of runs, one row for each thing that somebody said about something: a later word of the same takes the place of an earlier one.
-- `decision_id` and `agent` are empty where the whole run, or all that answered, is meant. A run of this id need not be there (yet, or any more).
CREATE TABLE outcomes (
    outcome_id text PRIMARY KEY,
    run_id text NOT NULL,
    decision_id text NOT NULL DEFAULT '',
    agent text NOT NULL DEFAULT '',
    kind text NOT NULL,
    said_by text NOT NULL,
    score double precision NOT NULL,
    weight double precision NOT NULL,
    note text NOT NULL DEFAULT '',
    event_id text NOT NULL,
    said_at double precision NOT NULL,
    at double precision NOT NULL
);
CREATE INDEX outcomes_run ON outcomes (run_id);
CREATE INDEX outcomes_recent ON outcomes (at);
-- What was to be decided (JSON), so that a decision can be made again; NULL for what a node decided itself.
ALTER TABLE decisions ADD COLUMN wanted text;
CREATE INDEX decisions_at ON decisions (at, decision_id)
