-- One text for Postgres and SQLite: JSON is text, times are seconds since the epoch by the database's clock.
CREATE TABLE runs (
    run_id text PRIMARY KEY,
    source text NOT NULL,
    event_id text NOT NULL,
    workflow text NOT NULL,
    version text,
    status text NOT NULL,
    input text NOT NULL,
    result text,
    failure text,
    cost_usd double precision NOT NULL DEFAULT 0,
    traceparent text NOT NULL,
    owner text,
    epoch bigint NOT NULL DEFAULT 0,
    lease_until double precision NOT NULL DEFAULT 0,
    announced bigint NOT NULL DEFAULT 0,
    accepted_at double precision NOT NULL,
    started_at double precision,
    finished_at double precision,
    UNIQUE (source, event_id)
);
CREATE INDEX runs_open ON runs (lease_until) WHERE announced = 0;
CREATE INDEX runs_recent ON runs (accepted_at);
CREATE INDEX runs_owner ON runs (owner) WHERE owner IS NOT NULL;

CREATE TABLE calls (
    call_id text PRIMARY KEY,
    run_id text NOT NULL,
    agent text NOT NULL,
    task text NOT NULL,
    deadline double precision NOT NULL,
    attempt bigint NOT NULL DEFAULT 0,
    holder text,
    held_until double precision NOT NULL DEFAULT 0,
    answer text,
    failure text,
    cost_usd double precision NOT NULL DEFAULT 0,
    requested_at double precision NOT NULL,
    claimed_at double precision,
    answered_at double precision
);
CREATE INDEX calls_run ON calls (run_id);
CREATE INDEX calls_holder ON calls (holder) WHERE answered_at IS NULL;

CREATE TABLE steps (
    call_id text NOT NULL,
    n bigint NOT NULL,
    body text NOT NULL,
    at double precision NOT NULL,
    PRIMARY KEY (call_id, n)
);

CREATE TABLE tool_calls (
    tool_call_id text PRIMARY KEY,
    run_id text NOT NULL,
    call_id text NOT NULL,
    agent text NOT NULL,
    category text NOT NULL,
    tool text NOT NULL,
    arguments text NOT NULL,
    result text,
    ok bigint,
    wall_ms double precision,
    requested_at double precision NOT NULL,
    finished_at double precision
);
CREATE INDEX tool_calls_call ON tool_calls (call_id);
CREATE INDEX tool_calls_run ON tool_calls (run_id);
CREATE INDEX tool_calls_record ON tool_calls (agent, category, tool, finished_at);

CREATE TABLE decisions (
    decision_id text PRIMARY KEY,
    run_id text NOT NULL,
    body text NOT NULL,
    at double precision NOT NULL
);
CREATE INDEX decisions_run ON decisions (run_id);

CREATE TABLE checkpoints (
    run_id text NOT NULL,
    ns text NOT NULL,
    checkpoint_id text NOT NULL,
    parent_id text,
    kind text NOT NULL,
    body bytea NOT NULL,
    metadata text NOT NULL,
    PRIMARY KEY (run_id, ns, checkpoint_id)
);

CREATE TABLE channel_values (
    run_id text NOT NULL,
    ns text NOT NULL,
    channel text NOT NULL,
    version text NOT NULL,
    kind text NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (run_id, ns, channel, version)
);

CREATE TABLE channel_writes (
    run_id text NOT NULL,
    ns text NOT NULL,
    checkpoint_id text NOT NULL,
    task_id text NOT NULL,
    idx bigint NOT NULL,
    path text NOT NULL,
    channel text NOT NULL,
    kind text NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (run_id, ns, checkpoint_id, task_id, idx)
);
