-- What calls and runs took beside money; and accounts, from which calls take: a limited run's, or a limited tenant's of one period.
ALTER TABLE calls ADD COLUMN tokens bigint;
ALTER TABLE calls ADD COLUMN tool_calls bigint NOT NULL DEFAULT 0;
ALTER TABLE calls ADD COLUMN allowance text;
ALTER TABLE runs ADD COLUMN tokens bigint NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN tool_calls bigint NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN parked_s double precision NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN partial text;

CREATE TABLE accounts (
    account text PRIMARY KEY,
    usd_limit double precision,
    tokens_limit bigint,
    tool_calls_limit bigint,
    usd double precision NOT NULL DEFAULT 0,
    tokens bigint NOT NULL DEFAULT 0,
    tool_calls bigint NOT NULL DEFAULT 0
);
CREATE TABLE reservations (
    account text NOT NULL,
    call_id text NOT NULL,
    usd double precision NOT NULL,
    tokens bigint NOT NULL,
    tool_calls bigint NOT NULL,
    settled bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account, call_id)
);
CREATE VIEW balances AS
SELECT a.account, a.usd_limit, a.tokens_limit, a.tool_calls_limit, count(r.call_id) AS calls, coalesce(sum(r.still_open), 0) AS open,
    a.usd + coalesce(sum(r.usd), 0) AS usd, a.tokens + coalesce(sum(r.tokens), 0) AS tokens, a.tool_calls + coalesce(sum(r.tool_calls), 0) AS tool_calls
FROM accounts AS a LEFT JOIN (
    SELECT r.account, r.call_id,
        CASE WHEN c.parked_at IS NULL AND (c.answered_at IS NULL OR c.tokens IS NULL) THEN 1 ELSE 0 END AS still_open,
        CASE WHEN c.answered_at IS NULL OR c.tokens IS NULL THEN r.usd ELSE c.cost_usd END AS usd,
        CASE WHEN c.answered_at IS NULL OR c.tokens IS NULL THEN r.tokens ELSE c.tokens END AS tokens,
        CASE WHEN c.answered_at IS NULL OR c.tokens IS NULL THEN r.tool_calls ELSE c.tool_calls END AS tool_calls
    FROM reservations AS r JOIN calls AS c ON c.call_id = r.call_id
) AS r ON r.account = a.account
GROUP BY a.account, a.usd_limit, a.tokens_limit, a.tool_calls_limit, a.usd, a.tokens, a.tool_calls;
