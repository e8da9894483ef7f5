//! Which disk it is, for as long as the disk lives.

use lifeboat_tracker::DiskDevice;

/// What a disk calls itself: its world-wide identifier or its model and serial number, the
/// backing file of a loop device, and for want of these the path by which the operator named it.
///
/// Virtual disks often have none of them: then the path decides, which should be one below
/// `/dev/disk/by-id` or `/dev/disk/by-path`, since kernel names change between boots.
#[must_use]
pub fn identity_of(device: &DiskDevice, path: &str) -> String {
    if let Some(wwid) = &device.wwid {
        return format!("wwid:{wwid}");
    }
    if let Some(serial) = &device.serial {
        return format!("serial:{}:{serial}", device.model.as_deref().unwrap_or_default());
    }
    if let Some(file) = &device.backing_file {
        return format!("file:{}", file.display());
    }
    format!("path:{path}")
}

/// The disk's own description for people: model and serial number, as far as it has them.
#[must_use]
pub fn hardware_id_of(device: &DiskDevice) -> Option<String> {
    let parts: Vec<&str> =
        [&device.model, &device.serial, &device.wwid].into_iter().flatten().map(String::as_str).collect();
    (!parts.is_empty()).then(|| parts.join(" "))
}
