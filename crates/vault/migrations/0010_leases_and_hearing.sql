-- A volume that closes by itself when no client used it for so long; NULL stays until it is closed.
ALTER TABLE volumes ADD COLUMN lease_ms BIGINT;

-- When the agent was last heard of, by the vault's clock; noted now and then.
ALTER TABLE servers ADD COLUMN heard_ns BIGINT;
