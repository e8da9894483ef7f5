-- Drills that the vault begins by itself.
CREATE TABLE drill_schedules (
    server TEXT PRIMARY KEY REFERENCES servers (id),
    -- Time between two drills.
    every_ms BIGINT NOT NULL,
    -- When the next one is due.
    due_ns BIGINT NOT NULL,
    -- When it is tried: later than due_ns once it was put off.
    try_ns BIGINT NOT NULL,
    -- Why the one that is due has not begun: one sentence.
    waiting TEXT,
    -- That it is long overdue was told.
    told BOOLEAN NOT NULL
);
