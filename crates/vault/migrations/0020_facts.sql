-- What a server's agent has found out about it, the newest: JSON.
CREATE TABLE server_facts (
    server TEXT PRIMARY KEY REFERENCES servers (id),
    facts TEXT NOT NULL,
    -- When it was received, by the vault's clock.
    received_ns BIGINT NOT NULL
);
