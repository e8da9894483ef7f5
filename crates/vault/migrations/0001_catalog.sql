-- The catalog of a vault.
--
-- Ids, digests and JSON are TEXT, numbers BIGINT, times BIGINT nanoseconds since 1970 in UTC
-- (columns that end in _ns). Nothing here is SQLite's own.

CREATE TABLE vault (
    id TEXT PRIMARY KEY,
    created_ns BIGINT NOT NULL
);

CREATE TABLE servers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    policy TEXT NOT NULL,
    registered_ns BIGINT NOT NULL,
    -- Through which process server it was last seen; not known after a rebuild.
    process_server TEXT,
    -- The point of the last comparison with the live disks; not known after a rebuild.
    compared_point TEXT
);

-- A removed disk stays, since points and keys refer to it.
CREATE TABLE disks (
    server TEXT NOT NULL REFERENCES servers (id),
    disk INTEGER NOT NULL,
    path TEXT NOT NULL,
    hardware_id TEXT,
    bytes BIGINT NOT NULL,
    removed BOOLEAN NOT NULL,
    PRIMARY KEY (server, disk)
);

-- The newest key of a disk is the one that its next files use. None is ever deleted while a file
-- may need it: the header of each file names its key.
CREATE TABLE disk_keys (
    server TEXT NOT NULL,
    disk INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    wrapped TEXT NOT NULL,
    created_ns BIGINT NOT NULL,
    PRIMARY KEY (server, disk, key_id),
    FOREIGN KEY (server, disk) REFERENCES disks (server, disk)
);

-- A row here is what makes a recovery point exist.
CREATE TABLE points (
    id TEXT PRIMARY KEY,
    server TEXT NOT NULL REFERENCES servers (id),
    -- Counted from 1 in the order of commits; retention leaves gaps.
    number BIGINT NOT NULL,
    time_ns BIGINT NOT NULL,
    kind TEXT NOT NULL,
    capture TEXT NOT NULL,
    sealed_ns BIGINT NOT NULL,
    uploaded_ns BIGINT NOT NULL,
    committed_ns BIGINT NOT NULL,
    -- Of what was committed, to recognise the same commit when it is repeated.
    commit_digest TEXT NOT NULL,
    UNIQUE (server, number),
    UNIQUE (server, time_ns)
);

CREATE TABLE point_disks (
    point TEXT NOT NULL REFERENCES points (id),
    server TEXT NOT NULL,
    disk INTEGER NOT NULL,
    epoch BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    PRIMARY KEY (point, disk),
    UNIQUE (server, disk, epoch),
    FOREIGN KEY (server, disk) REFERENCES disks (server, disk)
);

-- Points that retention has removed, so that a late repetition of their commit is answered as
-- the first one was.
CREATE TABLE removed_points (
    id TEXT PRIMARY KEY,
    server TEXT NOT NULL,
    committed_ns BIGINT NOT NULL,
    commit_digest TEXT NOT NULL,
    removed_ns BIGINT NOT NULL
);

-- The files that points need. A point needs, of each of its disks, all files with
-- last_epoch <= its epoch. Merging replaces the files of the epochs a..b by one with
-- first_epoch = a and last_epoch = b; ranges of one disk never overlap but for being equal.
CREATE TABLE files (
    object TEXT PRIMARY KEY,
    server TEXT NOT NULL,
    disk INTEGER NOT NULL,
    first_epoch BIGINT NOT NULL,
    last_epoch BIGINT NOT NULL,
    part BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    digest TEXT NOT NULL,
    plain_bytes BIGINT NOT NULL,
    UNIQUE (server, disk, last_epoch, part),
    FOREIGN KEY (server, disk) REFERENCES disks (server, disk)
);

-- Objects that were received whole, with the digest that was computed meanwhile, and that no
-- point has yet.
CREATE TABLE uploads (
    object TEXT PRIMARY KEY,
    server TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    digest TEXT NOT NULL,
    stored_ns BIGINT NOT NULL
);
CREATE INDEX uploads_of_server ON uploads (server);

-- What operators asked for once.
CREATE TABLE requests (
    id TEXT PRIMARY KEY,
    server TEXT NOT NULL REFERENCES servers (id),
    -- As in the API: take-point, compare, resync, verify.
    kind TEXT NOT NULL,
    -- What the agent is told; NULL when the vault itself does it.
    command TEXT,
    -- running, done or failed.
    state TEXT NOT NULL,
    -- The agent has given its result; what is left is the vault's.
    answered BOOLEAN NOT NULL,
    asked_ns BIGINT NOT NULL,
    ended_ns BIGINT,
    message TEXT,
    point TEXT,
    report TEXT
);
CREATE INDEX requests_by_state ON requests (state, server);

CREATE TABLE events (
    number BIGINT PRIMARY KEY,
    time_ns BIGINT NOT NULL,
    severity TEXT NOT NULL,
    code TEXT NOT NULL,
    server TEXT,
    disk INTEGER,
    message TEXT NOT NULL,
    next_step TEXT NOT NULL
);
CREATE INDEX events_by_code ON events (code, time_ns);

CREATE TABLE process_servers (
    name TEXT PRIMARY KEY,
    version TEXT NOT NULL,
    heard_ns BIGINT NOT NULL,
    spool_state TEXT NOT NULL,
    spool_total_bytes BIGINT NOT NULL,
    spool_free_bytes BIGINT NOT NULL
);

-- Open volumes. The reference keeps the point, and so its files, while one is open.
CREATE TABLE volumes (
    id TEXT PRIMARY KEY,
    server TEXT NOT NULL REFERENCES servers (id),
    point TEXT NOT NULL REFERENCES points (id),
    read_only BOOLEAN NOT NULL,
    opened_ns BIGINT NOT NULL,
    disks TEXT NOT NULL
);
