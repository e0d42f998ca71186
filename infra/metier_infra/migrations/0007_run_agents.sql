-- The stamps of the agents that a run had called when it ended (JSON), as its terminal event tells them; NULL for runs that ended before.
ALTER TABLE runs ADD COLUMN agents text;
