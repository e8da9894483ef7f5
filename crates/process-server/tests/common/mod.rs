//! What the tests of the core share: keys, descriptions, a part written as the receiver does it.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_hrl::{DiskKey, FileId, FileSummary, Writer};
use lifeboat_model::{
    BLOCK_BYTES, Digest, DiskNumber, Epoch, Extent, Part, PointId, PointKind, ServerId, VaultId,
};
use lifeboat_process_server::{Gateway, PartPlace, PartTicket, Pauses, Refusal, StateDir, StateError};
use lifeboat_wire::agent::{CaptureFigures, DiskDescription, PartReceipt, SealDisk, SealPoint};
use lifeboat_wire::process_server::DiskRegistration;

pub const VAULT: VaultId = VaultId::new(0xa1);
pub const DISK_BYTES: u64 = 64 << 20;

static FILE_IDS: AtomicU64 = AtomicU64::new(1);

/// A directory in memory where there is one, since these tests sync a lot.
pub fn fast_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub fn disk_key(server: ServerId, disk: DiskNumber) -> DiskKey {
    DiskKey::new(Digest::of(format!("{server} {disk}").as_bytes()).0)
}

pub fn registration(
    server: ServerId,
    disk: DiskNumber,
    committed: Option<(PointId, Epoch)>,
) -> DiskRegistration {
    let key = disk_key(server, disk);
    DiskRegistration {
        vault: VAULT,
        key_id: key.id().to_string(),
        key: key.expose().iter().map(|byte| format!("{byte:02x}")).collect(),
        committed,
        committed_bytes: committed.map(|_| DISK_BYTES),
    }
}

pub fn description() -> DiskDescription {
    DiskDescription {
        server_name: "db-1".into(),
        path: "/dev/sda".into(),
        hardware_id: None,
        bytes: DISK_BYTES,
    }
}

pub fn open(path: &Path) -> Result<Gateway, StateError> {
    let pauses = Pauses { unreachable_max: Duration::from_secs(30), refused_max: Duration::from_secs(300) };
    Gateway::open(StateDir::open(path)?, pauses, Timestamp::UNIX_EPOCH)
}

pub fn describe(gateway: &Gateway, server: ServerId, disk: DiskNumber) {
    let registration = Some((registration(server, disk, None), gateway.commits(server)));
    gateway.describe_disk(server, disk, &description(), None, registration, Timestamp::UNIX_EPOCH).unwrap();
}

pub fn begin(
    gateway: &Gateway,
    server: ServerId,
    disk: DiskNumber,
    epoch: Epoch,
    part: Part,
) -> Result<PartTicket, Refusal> {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&FILE_IDS.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    gateway.begin_part(PartPlace { server, disk, epoch, part, writer: 0 }, FileId(id), 1)
}

/// Writes `blocks` blocks that all begin with `seed`, one frame each, and syncs.
pub fn write_partial(ticket: &PartTicket, seed: u64, blocks: u32) -> FileSummary {
    let mut writer = Writer::new(File::create(&ticket.partial).unwrap(), &ticket.sealer).unwrap();
    for number in 0..blocks {
        let mut plain = vec![0; BLOCK_BYTES];
        plain[..8].copy_from_slice(&seed.to_le_bytes());
        plain[8..12].copy_from_slice(&number.to_le_bytes());
        let extent = Extent { first: u64::from(number), blocks: 1 };
        writer.append(ticket.sealer.seal(number, extent, &plain, Digest::of(&plain)).unwrap()).unwrap();
    }
    let (mut file, summary) = writer.finish().unwrap();
    file.flush().unwrap();
    file.sync_data().unwrap();
    summary
}

pub fn send_part(
    gateway: &Gateway,
    server: ServerId,
    disk: DiskNumber,
    epoch: Epoch,
    part: Part,
    seed: u64,
) -> Result<(PartReceipt, FileSummary), Refusal> {
    let ticket = begin(gateway, server, disk, epoch, part)?;
    let summary = write_partial(&ticket, seed, 2);
    Ok((gateway.finish_part(&ticket, summary)?, summary))
}

pub fn seal_of(point: u64, disks: Vec<SealDisk>) -> SealPoint {
    SealPoint {
        point: PointId::new(point),
        time: Timestamp::from_second(1_800_000_000 + i64::try_from(point % 1_000_000).unwrap()).unwrap(),
        kind: PointKind::Crash,
        disks,
        removed: Vec::new(),
        capture: CaptureFigures::default(),
    }
}

pub fn seal_disk(disk: u16, epoch: u64, parts: u32) -> SealDisk {
    SealDisk { disk: DiskNumber(disk), epoch: Epoch(epoch), parts, bytes: DISK_BYTES }
}

/// All files under a directory whose name ends so.
pub fn files_ending(dir: &Path, ending: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_ending(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}
