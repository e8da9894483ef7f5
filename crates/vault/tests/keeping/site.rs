//! A vault with one server of two disks, and a model of what every point must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use jiff::{SignedDuration, Timestamp};
use lifeboat_hrl::{FileId, FileIdentity, FrameSealer, Writer};
use lifeboat_model::{
    BLOCK_BYTES, Digest, DiskNumber, Epoch, Extent, FRAME_BLOCKS, Part, PointId, PointKind,
    ReplicationPolicy, RetentionRule, ServerId, Span,
};
use lifeboat_nbd::ReadChunk;
use lifeboat_vault::catalog::StoredFile;
use lifeboat_vault::retention::{AtStep, Retention, RetentionSettings};
use lifeboat_vault::{Randomness, SystemRandomness, Vault, VaultError};
use lifeboat_volume::{DiskSource, FileSource, FrameCache, Objects, PointDisk};
use lifeboat_wire::agent::{CaptureFigures, DiskDescription, SealDisk, SealPoint};
use lifeboat_wire::process_server::{CommitPoint, FileDescription, GrantRequest};
use tempfile::TempDir;

pub const SERVER: ServerId = ServerId::new(7);
pub const DISK_BLOCKS: u64 = 300;
const PROCESS_SERVER: &str = "hall-2";

/// Seconds after the beginning of an hour.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs(seconds)
}

/// What is written to a disk: blocks with content that the number stands for; 0 is zeroes.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub first: u64,
    pub blocks: u64,
    pub seed: u64,
}

/// What each block holds, by its number.
pub type Image = Vec<u64>;

pub fn block_content(seed: u64, block: u64) -> Vec<u8> {
    if seed == 0 {
        return vec![0; BLOCK_BYTES];
    }
    let line = format!("{seed:016x} {block:016x} ").into_bytes();
    let mut content = line.repeat(BLOCK_BYTES / line.len() + 1);
    content.truncate(BLOCK_BYTES);
    // One part in four does not shrink.
    if seed % 4 == 1 {
        blake3::Hasher::new().update(&content).finalize_xof().fill(&mut content);
    }
    content
}

pub fn apply(image: &mut Image, changes: &[Change]) {
    for change in changes {
        let first = usize::try_from(change.first).unwrap();
        image[first..first + usize::try_from(change.blocks).unwrap()].fill(change.seed);
    }
}

pub fn policy(rules: &[(u64, Option<u64>)]) -> ReplicationPolicy {
    let rule = |&(until, every): &(u64, Option<u64>)| RetentionRule {
        until: Span::seconds(until),
        every: every.map(Span::seconds),
    };
    ReplicationPolicy { retention: rules.iter().map(rule).collect(), ..ReplicationPolicy::default() }
}

/// Everything is deleted at once, and parts are small.
pub fn at_once() -> RetentionSettings {
    RetentionSettings {
        merge_bytes_per_second: 0,
        fold_percent: 25,
        part_bytes: 200 * BLOCK_BYTES as u64,
        delete_after: SignedDuration::ZERO,
        // Files have the time of the machine, the vault's clock is the test's.
        orphan_after: SignedDuration::from_hours(-1_000_000),
    }
}

pub struct Site {
    pub dir: TempDir,
    pub vault: Arc<Vault>,
    pub settings: RetentionSettings,
    /// The epoch that is open, by disk.
    pub epochs: Vec<u64>,
    pub images: Vec<Image>,
    /// What each committed point holds.
    pub points: BTreeMap<PointId, Vec<Image>>,
    pub times: BTreeMap<PointId, i64>,
    pub newest: Option<PointId>,
}

impl Site {
    pub async fn new(disks: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault =
            Vault::create(&dir.path().join("state"), None, Arc::new(SystemRandomness), at(0)).await.unwrap();
        for disk in 0..disks {
            register(&vault, disk).await;
        }
        let count = usize::from(disks);
        Self {
            dir,
            vault: Arc::new(vault),
            settings: at_once(),
            epochs: vec![1; count],
            images: vec![vec![0; usize::try_from(DISK_BLOCKS).unwrap()]; count],
            points: BTreeMap::new(),
            times: BTreeMap::new(),
            newest: None,
        }
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn path_of(&self, object: &str) -> PathBuf {
        self.state().join("store").join(object)
    }

    pub async fn set_policy(&self, policy: &ReplicationPolicy) {
        self.vault.set_policy(SERVER, policy).await.unwrap();
    }

    pub async fn reopen(self, now: Timestamp) -> Self {
        let path = self.state();
        self.vault.close().await;
        assert_eq!(Arc::strong_count(&self.vault), 1, "somebody still uses the vault");
        let Self { dir, vault, settings, epochs, images, points, times, newest } = self;
        drop(vault);
        let vault = Vault::open(&path, None, Arc::new(SystemRandomness), now).await.unwrap();
        Self { dir, vault: Arc::new(vault), settings, epochs, images, points, times, newest }
    }

    pub fn retention(&self) -> Retention {
        Retention::new(Arc::clone(&self.vault), self.settings)
    }

    pub fn retention_with(&self, at_step: AtStep) -> Retention {
        self.retention().with_steps(at_step)
    }

    /// Commits a point: for each disk, the parts of its epoch.
    pub async fn commit(&mut self, seconds: i64, kind: PointKind, disks: &[Vec<Vec<Change>>]) -> PointId {
        let commit = write_epochs(&self.vault, seconds, kind, &self.epochs, disks).await;
        self.vault.commit_point(PROCESS_SERVER, &commit, at(seconds)).await.unwrap();
        for (disk, parts) in disks.iter().enumerate() {
            for part in parts {
                apply(&mut self.images[disk], part);
            }
            self.epochs[disk] += 1;
        }
        let point = commit.seal.point;
        self.points.insert(point, self.images.clone());
        self.times.insert(point, seconds);
        self.newest = Some(point);
        point
    }

    /// A point with one change on every disk.
    pub async fn take(&mut self, seconds: i64, change: Change) -> PointId {
        let disks = vec![vec![vec![change]]; self.epochs.len()];
        self.commit(seconds, PointKind::Crash, &disks).await
    }

    /// The points that the vault lists, oldest first.
    pub async fn listed(&self) -> Vec<PointId> {
        listed(&self.vault).await
    }

    /// Every listed point holds what it held when it was committed; the newest is there.
    pub async fn check(&self) {
        let listed = self.listed().await;
        assert_eq!(listed.last(), self.newest.as_ref());
        check_points(&self.vault, &self.state(), &listed, &self.points).await;
    }

    pub async fn files(&self, disk: u16) -> Vec<StoredFile> {
        let files = self.vault.catalog().files_up_to(SERVER, DiskNumber(disk), Epoch(1 << 40)).await;
        files.unwrap()
    }

    /// The HRL files that are in the store.
    pub fn stored(&self) -> BTreeSet<String> {
        let root = self.state().join("store");
        tree(&root).into_iter().filter(|name| name.ends_with(".hrl")).collect()
    }

    /// What the store has is what the catalog needs.
    pub async fn check_nothing_left_over(&self) {
        let mut needed = BTreeSet::new();
        for disk in 0..u16::try_from(self.epochs.len()).unwrap() {
            needed.extend(self.files(disk).await.into_iter().map(|file| file.object));
        }
        assert_eq!(self.stored(), needed);
        let manifests =
            tree(&self.state().join("store")).into_iter().filter(|name| name.contains("/points/"));
        assert_eq!(manifests.count(), self.listed().await.len());
    }

    /// Changes rows that only modules of others write.
    pub async fn sql(&self, statement: &'static str, values: &[&str]) {
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(self.state().join("catalog.sqlite"))
            .busy_timeout(std::time::Duration::from_secs(30));
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        let mut query = sqlx::query(statement);
        for value in values {
            query = query.bind((*value).to_owned());
        }
        query.execute(&pool).await.unwrap();
        pool.close().await;
    }

    pub async fn open_volume(&self, id: &str, point: PointId, seconds: i64) {
        let opened = (at(seconds).as_nanosecond()).to_string();
        self.sql(
            "INSERT INTO volumes (id, server, point, read_only, opened_ns, disks) \
             VALUES (?1, ?2, ?3, 1, CAST(?4 AS INTEGER), '[]')",
            &[id, &SERVER.to_string(), &point.to_string(), &opened],
        )
        .await;
    }

    pub async fn close_volume(&self, id: &str) {
        self.sql("DELETE FROM volumes WHERE id = ?1", &[id]).await;
    }
}

pub async fn register(vault: &Vault, disk: u16) {
    let description = DiskDescription {
        server_name: "db1".into(),
        path: format!("/dev/sd{disk}"),
        hardware_id: None,
        bytes: DISK_BLOCKS * BLOCK_BYTES as u64,
    };
    vault.register_disk(PROCESS_SERVER, SERVER, DiskNumber(disk), &description, at(0)).await.unwrap();
}

/// Writes and uploads the files of open epochs, and says what to commit.
pub async fn write_epochs(
    vault: &Vault,
    seconds: i64,
    kind: PointKind,
    epochs: &[u64],
    disks: &[Vec<Vec<Change>>],
) -> CommitPoint {
    let mut files = Vec::new();
    let mut sealed = Vec::new();
    for ((number, epoch), parts) in (0..).zip(epochs).zip(disks) {
        let disk = DiskNumber(number);
        for (part, changes) in (0..).zip(parts) {
            files.push(upload(vault, disk, Epoch(*epoch), Part(part), changes, at(seconds)).await);
        }
        sealed.push(SealDisk {
            disk,
            epoch: Epoch(*epoch),
            parts: u32::try_from(parts.len()).unwrap(),
            bytes: DISK_BLOCKS * BLOCK_BYTES as u64,
        });
    }
    let seed = Digest::of(format!("{seconds} {epochs:?}").as_bytes()).0;
    let point = PointId::new(u64::from_le_bytes(seed[..8].try_into().unwrap()));
    let capture = CaptureFigures { attempts: 1, ..CaptureFigures::default() };
    CommitPoint {
        server: SERVER,
        seal: SealPoint { point, time: at(seconds), kind, disks: sealed, removed: Vec::new(), capture },
        files,
        sealed_at: at(seconds),
        uploaded_at: at(seconds),
    }
}

/// Commits without a model beside.
pub async fn commit(vault: &Vault, commit: &CommitPoint) -> Result<(), VaultError> {
    vault.commit_point(PROCESS_SERVER, commit, commit.seal.time).await.map(drop)
}

async fn upload(
    vault: &Vault,
    disk: DiskNumber,
    epoch: Epoch,
    part: Part,
    changes: &[Change],
    now: Timestamp,
) -> FileDescription {
    let identity = FileIdentity {
        vault: vault.id(),
        server: SERVER,
        disk,
        first_epoch: epoch,
        last_epoch: epoch,
        part,
        disk_bytes: DISK_BLOCKS * BLOCK_BYTES as u64,
    };
    let mut id = [0; 16];
    SystemRandomness.fill(&mut id).unwrap();
    let key = vault.disk_key(SERVER, disk, None).await.unwrap();
    let sealer = FrameSealer::new(identity, FileId(id), &key, 1).unwrap();
    let mut writer = Writer::new(Vec::new(), &sealer).unwrap();
    for change in changes {
        let extent = Extent::new(change.first, change.blocks).unwrap();
        if change.seed == 0 {
            writer.zeroes(extent).unwrap();
            continue;
        }
        for piece in extent.pieces(FRAME_BLOCKS) {
            let blocks = piece.first..piece.end();
            let plain: Vec<u8> = blocks.flat_map(|block| block_content(change.seed, block)).collect();
            let frame = sealer.seal(writer.next_frame(), piece, &plain, Digest::of(&plain)).unwrap();
            writer.append(frame).unwrap();
        }
    }
    let (bytes, summary) = writer.finish().unwrap();
    let file = FileDescription {
        disk,
        epoch,
        part,
        bytes: summary.bytes,
        digest: summary.digest,
        plain_bytes: summary.plain_bytes,
    };
    let request = GrantRequest { server: SERVER, file: file.clone() };
    let grant = vault.grant(PROCESS_SERVER, &request, now).await.unwrap();
    assert!(!grant.stored);
    let token = grant.url.strip_prefix("/v1/objects/").unwrap();
    let body = stream::iter([Ok::<_, std::io::Error>(Bytes::from(bytes))]);
    vault.receive(PROCESS_SERVER, token, body, now).await.unwrap();
    file
}

pub async fn listed(vault: &Vault) -> Vec<PointId> {
    let points = vault.points(SERVER, 100_000).await.unwrap();
    points.iter().rev().map(|point| point.id).collect()
}

/// Reads points as a volume does and compares every block.
pub async fn check_points(
    vault: &Vault,
    state: &Path,
    points: &[PointId],
    expected: &BTreeMap<PointId, Vec<Image>>,
) {
    let cache = FrameCache::new(8 << 20);
    for point in points {
        for (disk, image) in (0..).zip(&expected[point]) {
            let disk = DiskNumber(disk);
            let (_, files) = vault.files_of_point(*point, disk).await.unwrap();
            let read = read_disk(vault, state, disk, &files, &cache).await.unwrap_or_else(|error| {
                panic!("disk {disk} of {point}: {error}");
            });
            for (block, seed) in (0..).zip(image) {
                let start = usize::try_from(block).unwrap() * BLOCK_BYTES;
                assert!(
                    read[start..start + BLOCK_BYTES] == block_content(*seed, block),
                    "block {block} of disk {disk} of {point} is not {seed:x}; files: {files:#?}"
                );
            }
        }
    }
}

/// All bytes of a disk that these files make.
pub async fn read_disk(
    vault: &Vault,
    state: &Path,
    disk: DiskNumber,
    files: &[StoredFile],
    cache: &Arc<FrameCache>,
) -> Result<Vec<u8>, String> {
    let source = DiskSource {
        vault: vault.id(),
        server: SERVER,
        disk,
        disk_bytes: DISK_BLOCKS * BLOCK_BYTES as u64,
        files: files
            .iter()
            .map(|file| FileSource {
                object: file.object.clone(),
                bytes: file.bytes,
                digest: file.digest,
                first_epoch: file.first_epoch,
                last_epoch: file.last_epoch,
                part: file.part,
            })
            .collect(),
        keys: vec![vault.disk_key(SERVER, disk, None).await.unwrap()],
    };
    let objects = Objects::new(Arc::clone(vault.store().objects()), Some(state.join("store")));
    let disk =
        PointDisk::open(source, objects, Arc::clone(cache)).await.map_err(|error| error.to_string())?;
    let len = u32::try_from(disk.size_bytes()).unwrap();
    let mut bytes = Vec::new();
    for chunk in disk.read(0, len).await.map_err(|error| error.to_string())? {
        match chunk {
            ReadChunk::Data(data) => bytes.extend_from_slice(&data),
            ReadChunk::Zeroes(count) => bytes.resize(bytes.len() + count as usize, 0),
        }
    }
    Ok(bytes)
}

pub fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}
