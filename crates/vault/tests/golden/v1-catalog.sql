-- Rows of a catalog as its first version had them.
INSERT INTO vault (id, created_ns) VALUES ('00000000000000bb', 1790000000000000000);
INSERT INTO servers (id, name, policy, registered_ns, process_server, compared_point) VALUES
    ('0000000000000123', 'db1', '{"interval":"5s","filesystem_interval":"1h","capture_timeout":"30s","retention":[{"until":"2h"},{"until":"1d","every":"1h"}]}', 1790000000000000000, 'hall-1', NULL);
INSERT INTO disks (server, disk, path, hardware_id, bytes, removed) VALUES
    ('0000000000000123', 0, '/dev/sda', 'ACME 7', 1073741824, FALSE),
    ('0000000000000123', 1, '/dev/sdb', NULL, 4096, TRUE);
INSERT INTO points (id, server, number, time_ns, kind, capture, sealed_ns, uploaded_ns, committed_ns, commit_digest) VALUES
    ('00000000000000a1', '0000000000000123', 1, 1790000010000000000, 'crash', '{"duration_us":1,"window_us":2,"frozen_us":0,"attempts":1,"blocks_in_window":3}', 1790000011000000000, 1790000012000000000, 1790000013000000000, 'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262'),
    ('00000000000000a2', '0000000000000123', 2, 1790000020000000000, 'filesystem', '{"duration_us":1,"window_us":2,"frozen_us":9,"attempts":1,"blocks_in_window":3}', 1790000021000000000, 1790000022000000000, 1790000023000000000, 'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262');
INSERT INTO point_disks (point, server, disk, epoch, bytes) VALUES
    ('00000000000000a1', '0000000000000123', 0, 1, 1073741824),
    ('00000000000000a2', '0000000000000123', 0, 2, 1073741824);
INSERT INTO files (object, server, disk, first_epoch, last_epoch, part, bytes, digest, plain_bytes) VALUES
    ('v1/a', '0000000000000123', 0, 1, 1, 0, 100, 'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262', 4096),
    ('v1/b', '0000000000000123', 0, 1, 1, 1, 200, 'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262', 8192),
    ('v1/c', '0000000000000123', 0, 2, 2, 0, 50, 'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262', 4096);
INSERT INTO removed_points (id, server, committed_ns, commit_digest, removed_ns) VALUES
    ('00000000000000a0', '0000000000000123', 1790000003000000000, 'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262', 1790000015000000000);
INSERT INTO events (number, time_ns, severity, code, server, disk, message, next_step) VALUES
    (1, 1790000010000000000, 'warning', 'disk_trouble', '0000000000000123', 0, 'Disk 0 cannot be read.', 'Look at the cable.');
INSERT INTO process_servers (name, version, heard_ns, spool_state, spool_total_bytes, spool_free_bytes) VALUES
    ('hall-1', '0.1.0', 1790000020000000000, 'good', 1000, 900);
INSERT INTO volumes (id, server, point, read_only, opened_ns, disks) VALUES
    ('00000000000000c1', '0000000000000123', '00000000000000a1', TRUE, 1790000030000000000, '[0]');
