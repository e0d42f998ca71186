-- A tenant's row is what its limits are counted under; which replica serves which version of a workflow; and up to when each schedule was looked at.
CREATE TABLE tenant_locks (
    tenant text PRIMARY KEY
);
CREATE TABLE serving (
    instance text NOT NULL,
    workflow text NOT NULL,
    version text NOT NULL,
    newest bigint NOT NULL,
    seen_at double precision NOT NULL,
    PRIMARY KEY (instance, workflow, version)
);
CREATE INDEX serving_workflow ON serving (workflow, version);
CREATE TABLE schedules (
    name text PRIMARY KEY,
    looked_at double precision NOT NULL
);
CREATE INDEX runs_pinned ON runs (workflow, version) WHERE announced = 0;
