-- Rate limits that workers share: when each bucket will be full again, for requests and for tokens, if nothing more is drawn from it.
CREATE TABLE model_buckets (
    name text PRIMARY KEY,
    requests double precision NOT NULL,
    tokens double precision NOT NULL
);
