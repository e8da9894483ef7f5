-- What retention and verification remember.

-- Objects that nothing needs any more, from the change that made them so until they are deleted.
CREATE TABLE retired_objects (
    object TEXT PRIMARY KEY,
    server TEXT NOT NULL,
    -- Of a file; NULL for the manifest of a point.
    disk INTEGER,
    last_epoch BIGINT,
    retired_ns BIGINT NOT NULL
);

-- Points whose manifest in the store may say something else than the catalog: it is being
-- written anew for a change that is not made yet.
CREATE TABLE unsettled_manifests (
    point TEXT PRIMARY KEY,
    server TEXT NOT NULL
);

-- When each file was last read whole, and what was wrong with it; NULL when nothing was.
CREATE TABLE file_checks (
    object TEXT PRIMARY KEY,
    checked_ns BIGINT NOT NULL,
    fault TEXT
);
