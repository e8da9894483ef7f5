-- Volumes that were open when a file was retired and had been opened over it.
CREATE TABLE retired_held (
    object TEXT NOT NULL REFERENCES retired_objects (object) ON DELETE CASCADE,
    volume TEXT NOT NULL,
    PRIMARY KEY (object, volume)
);
