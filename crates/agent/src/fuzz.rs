//! For the fuzz targets: what the agent reads of its server that anybody may have written.

use std::io;
use std::net::Ipv4Addr;

use lifeboat_model::AddressChange;

use crate::facts::{initramfs, partition_table};
use crate::fit::configuration::{Form, change};

/// The release whose modules are looked for.
const RELEASE: &str = "6.1.0-56-amd64";

/// Sectors of the disks that are read, in bytes.
const SECTOR: usize = 512;

/// Reads any bytes as an initramfs.
pub fn initramfs(mut data: &[u8]) {
    let _ = initramfs::modules(&mut data, RELEASE);
}

/// Reads any bytes as a disk, as they are and with the check sums of a GUID partition table that fit.
///
/// # Panics
/// When a partition that is told cannot be.
pub fn partition_table(data: &[u8]) {
    read_table(data);
    let mut disk = data.to_vec();
    if let Some(header) = disk.get(SECTOR..2 * SECTOR) {
        let size = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte])) as usize;
        let (length, entries) = (size(12).min(SECTOR), size(80).saturating_mul(size(84)));
        let sum = disk.get(2 * SECTOR..(2 * SECTOR).saturating_add(entries)).map(partition_table::crc32);
        let header = &mut disk[SECTOR..2 * SECTOR];
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        header[88..92].copy_from_slice(&sum.unwrap_or(0).to_le_bytes());
        header[16..20].fill(0);
        let sum = partition_table::crc32(&header[..length]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        read_table(&disk);
    }
}

fn read_table(disk: &[u8]) {
    let mut read_at = |offset: u64, bytes: usize| {
        let part = usize::try_from(offset).ok().and_then(|from| disk.get(from..from.checked_add(bytes)?));
        part.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    };
    let beginning = partition_table::read(disk.len() as u64, SECTOR as u64, &mut read_at);
    for partition in beginning.into_iter().flat_map(|of| of.table).flatten().flat_map(|of| of.partitions) {
        assert!(partition.number > 0, "partitions are numbered from 1");
    }
}

/// Changes an address in any text.
///
/// # Panics
/// When a change is made where the address is not, or what was changed does not have the new one.
pub fn network_configuration(form: u8, text: &str) {
    let (from, to) = (Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(10, 5, 0, 2));
    let gateway = Some((Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 5, 0, 1)));
    let order = AddressChange { from, to, prefix: 16, gateway };
    let form = Form::ALL[usize::from(form) % Form::ALL.len()];
    if let Some(changed) = change(form, text, &order).text {
        assert!(text.contains("192.0.2.7") && changed.contains("10.5.0.2"), "{text:?} became {changed:?}");
    }
}
