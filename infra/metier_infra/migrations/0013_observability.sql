-- How often a run was taken up again: what woke it, since when, until when it was parked once more, and the trace that begins there, where one does.
CREATE TABLE segments (
    run_id text NOT NULL,
    epoch bigint NOT NULL,
    woken_by text,
    traceparent text,
    began_at double precision,
    parked_at double precision,
    PRIMARY KEY (run_id, epoch)
);
