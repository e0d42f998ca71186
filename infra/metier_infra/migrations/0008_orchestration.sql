-- Tenants and priorities, limits, cancels; runs that stand under another run, or go on where another ended.
ALTER TABLE runs ADD COLUMN tenant text NOT NULL DEFAULT 'default';
ALTER TABLE runs ADD COLUMN priority bigint NOT NULL DEFAULT 5;
ALTER TABLE runs ADD COLUMN limits text;
ALTER TABLE runs ADD COLUMN parent text;
ALTER TABLE runs ADD COLUMN origin text;
ALTER TABLE runs ADD COLUMN cancelled_by text;
ALTER TABLE runs ADD COLUMN cancel_note text;
ALTER TABLE runs ADD COLUMN cancelled_at double precision;
CREATE INDEX runs_parent ON runs (parent) WHERE parent IS NOT NULL;
CREATE INDEX runs_tenant ON runs (tenant, status)
