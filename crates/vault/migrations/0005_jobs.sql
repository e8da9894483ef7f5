-- What runs at the recovery site, and the jobs that bring it there.

-- Since when a server's history takes no more points from its source, because it goes on at the
-- recovery site; NULL while the source has it. The server's manifest says the same.
ALTER TABLE servers ADD COLUMN fenced_ns BIGINT;

-- How a server's machine looks at the recovery site: JSON. No row: as its disks suggest.
CREATE TABLE targets (
    server TEXT PRIMARY KEY REFERENCES servers (id),
    target TEXT NOT NULL
);

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    -- Counted from 1 in the order in which they began.
    number BIGINT NOT NULL UNIQUE,
    server TEXT NOT NULL REFERENCES servers (id),
    -- JSON: what was asked for.
    request TEXT NOT NULL,
    -- JSON: what the steps have found and made so far.
    work TEXT NOT NULL,
    -- running, rolling-back, done, failed or cancelled.
    state TEXT NOT NULL,
    -- Somebody wants it to end.
    cancel BOOLEAN NOT NULL,
    begun_ns BIGINT NOT NULL,
    ended_ns BIGINT,
    message TEXT,
    report TEXT
);
CREATE INDEX jobs_of_server ON jobs (server, number);
CREATE INDEX jobs_by_state ON jobs (state);

CREATE TABLE job_steps (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    step TEXT NOT NULL,
    -- waiting, running, done, failed or undone.
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    begun_ns BIGINT,
    ended_ns BIGINT,
    message TEXT,
    PRIMARY KEY (job, number)
);

-- The machine that runs, or ran last, as a server's copy: of a drill until it is cleaned up, of a
-- failover from then on. At most one for each server.
CREATE TABLE recoveries (
    server TEXT PRIMARY KEY REFERENCES servers (id),
    -- drill or failover.
    purpose TEXT NOT NULL,
    job TEXT NOT NULL,
    machine TEXT NOT NULL,
    volume TEXT NOT NULL,
    point TEXT NOT NULL,
    point_ns BIGINT NOT NULL,
    begun_ns BIGINT NOT NULL,
    committed_ns BIGINT,
    -- JSON: the machine as it was started.
    spec TEXT NOT NULL
);
