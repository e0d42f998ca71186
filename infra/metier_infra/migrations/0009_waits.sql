-- What nodes wait for beside calls and runs, under ids made of the run and the slot: a time, or the next signal of a name (`name`), until `due` at the
-- latest. `signal_id` and `data` are those of the signal that ended a wait. Waits and signals of a run are numbered as they came.
CREATE TABLE waits (
    wait_id text PRIMARY KEY,
    run_id text NOT NULL,
    n bigint NOT NULL,
    slot text NOT NULL,
    name text,
    due double precision,
    asked_at double precision NOT NULL,
    ended_at double precision,
    signal_id text,
    data text,
    awaited bigint
);
CREATE INDEX waits_run ON waits (run_id, n);
CREATE TABLE signals (
    run_id text NOT NULL,
    signal_id text NOT NULL,
    n bigint NOT NULL,
    name text NOT NULL,
    data text NOT NULL,
    sent_by text NOT NULL,
    at double precision NOT NULL,
    wait_id text,
    PRIMARY KEY (run_id, signal_id)
);
CREATE INDEX signals_run ON signals (run_id, n);
-- `awaited`: the epoch of the run that was parked last while it waited for this; `wake_at`: when a parked run must go on, whatever else happens.
ALTER TABLE calls ADD COLUMN awaited bigint;
ALTER TABLE runs ADD COLUMN awaited bigint;
ALTER TABLE runs ADD COLUMN wake_at double precision;
CREATE INDEX runs_wake ON runs (wake_at) WHERE wake_at IS NOT NULL;
