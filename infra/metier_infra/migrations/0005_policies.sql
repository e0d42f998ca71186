-- Of a tool call that worked: whether the answer that came of it agreed with the model's own from before, and how sure the model was of that (0 to 1).
-- NULL where nobody said.
ALTER TABLE tool_calls ADD COLUMN agreed bigint;
ALTER TABLE tool_calls ADD COLUMN own_confidence double precision;
