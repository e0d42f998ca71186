-- oldest: 21
-- How many processes died, or broke, while they ran nodes of the run, since its last checkpoint.
ALTER TABLE runs ADD COLUMN lost bigint NOT NULL DEFAULT 0;
-- The oldest schema whose code works with this one: in an upgrade, the version before runs beside the new one, and can come back.
ALTER TABLE metier_schema ADD COLUMN oldest bigint
