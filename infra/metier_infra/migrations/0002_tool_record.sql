-- What a tool's record is made of: how a call ended, and the tool's own price; NULL where nobody said.
ALTER TABLE tool_calls ADD COLUMN status text;
ALTER TABLE tool_calls ADD COLUMN cost_usd double precision;
UPDATE tool_calls SET status = 'refused' WHERE substr(result, 1, 20) = '{"status": "refused"';
CREATE INDEX tool_calls_category ON tool_calls (agent, category, requested_at);
