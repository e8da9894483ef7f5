-- When an operator last had a server's machine stopped; NULL while it is to run.
ALTER TABLE recoveries ADD COLUMN stopped_ns BIGINT;
