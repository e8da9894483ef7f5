-- Networks at the recovery site, and which of them stand in for the source's.

CREATE TABLE networks (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- isolated, nat or bridge.
    kind TEXT NOT NULL,
    -- The host's bridge that it is; of kind bridge.
    bridge TEXT,
    -- Its addresses, and the address of the host's end; of the other kinds.
    subnet TEXT,
    gateway TEXT,
    dhcp BOOLEAN NOT NULL
);

-- A server with an address in the subnet joins these networks, where nothing else was said.
CREATE TABLE network_mappings (
    subnet TEXT PRIMARY KEY,
    production TEXT REFERENCES networks (id),
    test TEXT REFERENCES networks (id)
);
