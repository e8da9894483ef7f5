-- When an event was acknowledged, and by whom or what; NULL while it wants attention.
ALTER TABLE events ADD COLUMN acknowledged_ns BIGINT;
ALTER TABLE events ADD COLUMN acknowledged_by TEXT;
