-- How many rows of files end after the epoch of the point before it that has the disk, and not
-- after its own. An epoch in which nothing changed has no file, the first one of an empty disk
-- neither: without the number a lost row could not be told from that.
ALTER TABLE point_disks ADD COLUMN files BIGINT NOT NULL DEFAULT 0;
UPDATE point_disks SET files = (
    SELECT COUNT(*) FROM files f
    WHERE f.server = point_disks.server AND f.disk = point_disks.disk AND f.last_epoch <= point_disks.epoch
    AND f.last_epoch > COALESCE((
        SELECT MAX(x.epoch) FROM point_disks x
        WHERE x.server = point_disks.server AND x.disk = point_disks.disk AND x.epoch < point_disks.epoch
    ), 0)
);

-- The time of a removed point, for whoever asks for it; not known of those removed before this.
ALTER TABLE removed_points ADD COLUMN time_ns BIGINT;
CREATE INDEX removed_points_of_server ON removed_points (server, time_ns);
CREATE INDEX removed_points_by_removal ON removed_points (removed_ns);
