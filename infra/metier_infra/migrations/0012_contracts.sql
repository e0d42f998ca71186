-- Data of events that is too large to travel, under its SHA-256 in hex (`claims`); `put_at` is when it was last put, seconds since the epoch.
CREATE TABLE blobs (
    sha256 text PRIMARY KEY,
    body bytea NOT NULL,
    put_at double precision NOT NULL
);
CREATE INDEX blobs_by_age ON blobs (put_at);
