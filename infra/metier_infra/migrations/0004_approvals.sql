-- Tool calls that a person is asked about, under the id of the tool call; `granted` and what follows is NULL until somebody decided.
-- `digest` binds the tool and the arguments that are shown; `changed` are other arguments, where the one who granted gave some.
CREATE TABLE approvals (
    approval_id text PRIMARY KEY,
    run_id text NOT NULL,
    call_id text NOT NULL,
    agent text NOT NULL,
    tool text NOT NULL,
    digest text NOT NULL,
    arguments text NOT NULL,
    why text NOT NULL,
    stamp text,
    wanted_at double precision NOT NULL,
    expires_at double precision NOT NULL,
    granted bigint,
    decided_by text,
    note text,
    changed text,
    decided_at double precision,
    announced bigint NOT NULL DEFAULT 0
);
CREATE INDEX approvals_run ON approvals (run_id);
CREATE INDEX approvals_call ON approvals (call_id);
CREATE INDEX approvals_waiting ON approvals (expires_at) WHERE decided_at IS NULL;
CREATE INDEX approvals_untold ON approvals (decided_at) WHERE decided_at IS NOT NULL AND announced = 0;
-- Since when a call or run waits for a person, holding nothing; and how long in all a call did, in seconds. Its deadline moves on by that.
-- `taken_at`: when the call was claimed last. What was decided before, that attempt knows.
ALTER TABLE calls ADD COLUMN parked_at double precision;
ALTER TABLE calls ADD COLUMN parked_s double precision NOT NULL DEFAULT 0;
ALTER TABLE calls ADD COLUMN taken_at double precision NOT NULL DEFAULT 0;
CREATE INDEX calls_parked ON calls (parked_at) WHERE parked_at IS NOT NULL AND answered_at IS NULL;
ALTER TABLE runs ADD COLUMN parked_at double precision;
