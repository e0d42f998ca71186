-- Router versions: fitted offline, under a name that holds a digest of what they are. `body` is what its `kind` can load; `fitted_on` (JSON) says on what,
-- `report` (JSON) how it was judged last. Times are seconds since the epoch.
CREATE TABLE routers (
    version text PRIMARY KEY,
    kind text NOT NULL,
    digest text NOT NULL,
    body bytea NOT NULL,
    fitted_on text NOT NULL,
    fitted_by text NOT NULL,
    fitted_at double precision NOT NULL,
    report text,
    judged_at double precision
);
-- Where versions stand, by tenant (empty: for all): one document (JSON), so that each move is one write. `generation` counts the moves.
CREATE TABLE router_stages (
    tenant text PRIMARY KEY,
    body text NOT NULL,
    generation bigint NOT NULL
);
-- Every move that was made, under the id that follows from its request.
CREATE TABLE router_moves (
    move_id text PRIMARY KEY,
    generation bigint NOT NULL,
    tenant text NOT NULL,
    version text NOT NULL,
    stage_before text NOT NULL,
    stage text NOT NULL,
    share double precision,
    other text,
    moved_by text NOT NULL,
    note text NOT NULL,
    forced integer NOT NULL,
    at double precision NOT NULL
);
CREATE UNIQUE INDEX router_moves_in_order ON router_moves (tenant, generation)
