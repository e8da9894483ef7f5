//! The partition table of a disk, and what its first bytes start. Everything read is checked against the
//! disk's size and against fixed bounds.

use std::io;

use lifeboat_wire::facts::{BootCode, Partition, PartitionTable, TableKind};

/// Logical partitions that are followed.
const LOGICAL_MAX: u32 = 128;

/// Entries of a GUID partition table, and the bytes that they may take.
const GPT_ENTRIES_MAX: u32 = 4096;
const GPT_ENTRIES_BYTES_MAX: u32 = 1 << 20;

/// Where the four entries of an MBR are, and how it ends.
const MBR_AT: usize = 446;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];

const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Reads so many bytes at an offset; all of them or an error.
pub(crate) type ReadAt<'a> = &'a mut dyn FnMut(u64, usize) -> io::Result<Vec<u8>>;

/// What the beginning of a disk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Beginning {
    pub boot_code: BootCode,
    pub table: Result<Option<PartitionTable>, String>,
}

/// Reads the beginning of a disk of `bytes` bytes in sectors of `sector` bytes.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn read(bytes: u64, sector: u64, read_at: ReadAt<'_>) -> io::Result<Beginning> {
    let first = read_at(0, 512)?;
    let is_signed = first.ends_with(&SIGNATURE);
    let boot_code = if is_signed { boot_code(&first) } else { BootCode::None };
    if !is_signed {
        return Ok(Beginning { boot_code, table: Ok(None) });
    }
    let entries = mbr_entries(&first);
    let table = if entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        gpt(bytes, sector, read_at).map(Some)
    } else {
        mbr(&entries, bytes, sector, read_at)
    };
    Ok(Beginning { boot_code, table })
}

fn boot_code(first: &[u8]) -> BootCode {
    let code = &first[..440];
    if code.iter().all(|byte| *byte == 0) {
        return BootCode::None;
    }
    let says = |word: &[u8]| code.windows(word.len()).any(|window| window == word);
    if says(b"GRUB") { BootCode::Grub } else { BootCode::Other }
}

#[derive(Clone, Copy, Debug)]
struct MbrEntry {
    status: u8,
    kind: u8,
    first: u64,
    count: u64,
}

fn mbr_entries(sector: &[u8]) -> [MbrEntry; 4] {
    [0, 1, 2, 3].map(|number| {
        let entry = &sector[MBR_AT + number * 16..][..16];
        MbrEntry {
            status: entry[0],
            kind: entry[4],
            first: u64::from(u32_at(entry, 8)),
            count: u64::from(u32_at(entry, 12)),
        }
    })
}

impl MbrEntry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.count != 0
    }

    fn partition(&self, number: u32, base: u64, sector: u64) -> Option<Partition> {
        let start = base.checked_add(self.first)?.checked_mul(sector)?;
        let bytes = self.count.checked_mul(sector)?;
        Some(Partition { number, start, bytes, kind: mbr_kind(self.kind) })
    }
}

/// A boot sector of a file system has the same signature; its text makes no partitions.
fn mbr(
    entries: &[MbrEntry; 4],
    bytes: u64,
    sector: u64,
    read_at: ReadAt<'_>,
) -> Result<Option<PartitionTable>, String> {
    if entries.iter().any(|entry| entry.status & 0x7f != 0) || !entries.iter().any(MbrEntry::is_used) {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries).filter(|(_, entry)| entry.is_used()) {
        let partition = entry.partition(number, 0, sector).filter(|partition| partition.start < bytes);
        let Some(partition) = partition else { return Ok(None) };
        partitions.push(partition);
    }
    for extended in entries.iter().filter(|entry| EXTENDED.contains(&entry.kind) && entry.is_used()) {
        logical(extended.first, bytes, sector, read_at, &mut partitions)?;
    }
    Ok(Some(PartitionTable { kind: TableKind::Mbr, partitions }))
}

/// Follows the chain of an extended partition.
fn logical(
    base: u64,
    bytes: u64,
    sector: u64,
    read_at: ReadAt<'_>,
    partitions: &mut Vec<Partition>,
) -> Result<(), String> {
    let mut next = base;
    for number in 5..5 + LOGICAL_MAX {
        let offset = next.checked_mul(sector).filter(|offset| *offset < bytes);
        let offset = offset.ok_or("the chain of logical partitions leads beyond the disk")?;
        let record = read_at(offset, 512).map_err(|error| format!("a logical partition: {error}"))?;
        if !record.ends_with(&SIGNATURE) {
            return Err(format!("the chain of logical partitions is broken at byte {offset}"));
        }
        let [entry, link, ..] = mbr_entries(&record);
        if entry.is_used() {
            partitions.extend(entry.partition(number, next, sector));
        }
        if !link.is_used() {
            return Ok(());
        }
        next = base + link.first;
    }
    Err(format!("the chain of logical partitions has more than {LOGICAL_MAX}"))
}

fn gpt(bytes: u64, sector: u64, read_at: ReadAt<'_>) -> Result<PartitionTable, String> {
    match gpt_at(sector, bytes, sector, read_at) {
        Ok(table) => Ok(table),
        // The second copy is at the end.
        Err(first) => {
            let last = bytes.checked_sub(sector).ok_or_else(|| first.clone())?;
            gpt_at(last, bytes, sector, read_at).map_err(|_| first)
        }
    }
}

fn gpt_at(at: u64, bytes: u64, sector: u64, read_at: ReadAt<'_>) -> Result<PartitionTable, String> {
    let unread = |error: io::Error| format!("the GUID partition table cannot be read: {error}");
    let mut header = read_at(at, 512).map_err(unread)?;
    if !header.starts_with(b"EFI PART") {
        return Err(format!("there is no GUID partition table at byte {at}, although the MBR says so"));
    }
    let length = u32_at(&header, 12) as usize;
    let stored = u32_at(&header, 16);
    if !(92..=512).contains(&length) {
        return Err(format!("the header of the GUID partition table has {length} bytes"));
    }
    header[16..20].fill(0);
    if crc32(&header[..length]) != stored {
        return Err("the header of the GUID partition table has a wrong check sum".into());
    }
    let (entries_at, count, size) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84));
    let total = count.checked_mul(size).filter(|total| *total <= GPT_ENTRIES_BYTES_MAX);
    let (Some(total), 1..=GPT_ENTRIES_MAX, 128..=4096) = (total, count, size) else {
        return Err(format!("the GUID partition table has {count} entries of {size} bytes"));
    };
    let offset = entries_at.checked_mul(sector).filter(|offset| *offset < bytes);
    let offset = offset.ok_or("the entries of the GUID partition table lie beyond the disk")?;
    let entries = read_at(offset, total as usize).map_err(unread)?;
    if crc32(&entries) != u32_at(&header, 88) {
        return Err("the entries of the GUID partition table have a wrong check sum".into());
    }
    let partitions = (1..).zip(entries.chunks_exact(size as usize)).filter_map(|(number, entry)| {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let is_used = entry[..16].iter().any(|byte| *byte != 0);
        let count = last.checked_sub(first)?.checked_add(1)?;
        let (start, bytes) = (first.checked_mul(sector)?, count.checked_mul(sector)?);
        is_used.then(|| Partition { number, start, bytes, kind: gpt_kind(&guid(entry)) })
    });
    Ok(PartitionTable { kind: TableKind::Gpt, partitions: partitions.collect() })
}

/// The type of an entry as it is written: its first three groups are little-endian numbers.
fn guid(entry: &[u8]) -> String {
    fn group<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
        bytes.map(|byte| format!("{byte:02x}")).collect()
    }
    [
        group(entry[..4].iter().rev()),
        group(entry[4..6].iter().rev()),
        group(entry[6..8].iter().rev()),
        group(entry[8..10].iter()),
        group(entry[10..16].iter()),
    ]
    .join("-")
}

fn gpt_kind(guid: &str) -> String {
    let word = match guid {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => "efi-system",
        "21686148-6449-6e6f-744e-656564454649" => "bios-boot",
        "0fc63daf-8483-4772-8e79-3d69d8477de4" => "linux",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => "linux-root",
        "bc13c2ff-59e6-4262-a352-b275fd6f7172" => "linux-boot",
        "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => "linux-swap",
        "e6d6d379-f507-44c2-a23c-238f2a3df928" => "linux-lvm",
        "a19d880f-05fc-4d3b-a006-743f0f84911e" => "linux-raid",
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7" => "microsoft-basic-data",
        other => other,
    };
    word.to_owned()
}

fn mbr_kind(kind: u8) -> String {
    match kind {
        0x83 => "linux".into(),
        0x82 => "linux-swap".into(),
        0x8e => "linux-lvm".into(),
        0xfd => "linux-raid".into(),
        0xef => "efi-system".into(),
        kind if EXTENDED.contains(&kind) => "extended".into(),
        other => format!("0x{other:02x}"),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |number, byte| (number << 8) | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// The check sum of GUID partition tables (CRC-32 of IEEE 802.3).
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests;
