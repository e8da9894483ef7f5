//! A vault with a server that points are taken of.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream;
use jiff::{SignedDuration, Timestamp};
use lifeboat_hrl::{DiskKey, FileId, FileIdentity, FrameSealer, LEVEL_DEFAULT, Writer};
use lifeboat_model::{Digest, DiskNumber, Epoch, Extent, Part, PointId, PointKind, ServerId, VaultId};
use lifeboat_vault::{NoRandomness, Randomness, Store, Vault, VaultError};
use lifeboat_wire::agent::{CaptureFigures, DiskDescription, SealDisk, SealPoint};
use lifeboat_wire::process_server::{CommitPoint, CommitReceipt, FileDescription, GrantRequest};
use tempfile::TempDir;

pub const PROCESS_SERVER: &str = "hall-2";
pub const SERVER: ServerId = ServerId::new(0xaaaa_0000_0000_0001);

/// The vault's clock in these tests, some seconds after it began.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs(seconds)
}

/// Keys that are all the same and ids that count up, so that files can be made in advance.
pub struct Counted(pub AtomicU64);

impl Counted {
    pub fn from(first: u64) -> Arc<Self> {
        Arc::new(Self(first.into()))
    }
}

impl Randomness for Counted {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        match <&mut [u8; 8]>::try_from(&mut *bytes) {
            Ok(id) => *id = self.0.fetch_add(1, Ordering::SeqCst).to_le_bytes(),
            Err(_) => bytes.fill(7),
        }
        Ok(())
    }
}

pub struct Fixture {
    pub dir: TempDir,
    pub vault: Vault,
}

impl Fixture {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::create(&state(&dir), None, Counted::from(1), at(0)).await.unwrap();
        Self { dir, vault }
    }

    /// With a store of its own.
    pub async fn with_store(store: Store) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::create(&state(&dir), Some(store), Counted::from(1), at(0)).await.unwrap();
        Self { dir, vault }
    }

    pub fn state(&self) -> PathBuf {
        state(&self.dir)
    }

    pub fn store_path(&self) -> PathBuf {
        self.state().join("store")
    }

    /// Stops the vault and opens it again.
    pub async fn reopen(self, store: Option<Store>) -> Self {
        let Self { dir, vault } = self;
        vault.close().await;
        drop(vault);
        let vault = Vault::open(&state(&dir), store, Counted::from(1000), at(1000)).await.unwrap();
        Self { dir, vault }
    }
}

fn state(dir: &TempDir) -> PathBuf {
    dir.path().join("state")
}

pub fn description(name: &str, path: &str) -> DiskDescription {
    DiskDescription {
        server_name: name.into(),
        path: path.into(),
        hardware_id: Some("QEMU disk 1".into()),
        bytes: 1 << 30,
    }
}

pub async fn register(vault: &Vault, server: ServerId, name: &str, disk: u16) {
    let description = description(name, &format!("/dev/sd{disk}"));
    vault.register_disk(PROCESS_SERVER, server, DiskNumber(disk), &description, at(1)).await.unwrap();
}

/// Makes the files of the disks of a vault.
#[derive(Clone)]
pub struct Files {
    pub vault: VaultId,
    pub key: DiskKey,
}

impl Files {
    /// Of a vault with [`Counted`] ids and keys.
    pub fn counted() -> Self {
        Self { vault: VaultId::new(1), key: DiskKey::new([7; 32]) }
    }

    /// An HRL file with one frame; always the same for the same place.
    pub fn content(&self, server: ServerId, disk: u16, epoch: u64, part: u32) -> Bytes {
        let text = format!("server {server}, disk {disk}, epoch {epoch}, part {part}; ");
        let plain: Vec<u8> = text.bytes().cycle().take(4096).collect();
        self.with_frames(server, disk, epoch, part, &[plain])
    }

    /// An HRL file with these frames.
    pub fn with_frames(
        &self,
        server: ServerId,
        disk: u16,
        epoch: u64,
        part: u32,
        frames: &[Vec<u8>],
    ) -> Bytes {
        let identity = FileIdentity {
            vault: self.vault,
            server,
            disk: DiskNumber(disk),
            first_epoch: Epoch(epoch),
            last_epoch: Epoch(epoch),
            part: Part(part),
            disk_bytes: 1 << 30,
        };
        let mut id = [0; 16];
        id.copy_from_slice(&Digest::of(format!("{identity:?}").as_bytes()).0[..16]);
        let sealer = FrameSealer::new(identity, FileId(id), &self.key, LEVEL_DEFAULT).unwrap();
        let mut writer = Writer::new(Vec::new(), &sealer).unwrap();
        for (number, plain) in (0..).zip(frames) {
            let blocks = plain.len() as u64 / 4096;
            let extent = Extent::new(u64::from(number) * 64, blocks).unwrap();
            writer.append(sealer.seal(number, extent, plain, Digest::of(plain)).unwrap()).unwrap();
        }
        writer.finish().unwrap().0.into()
    }

    /// The description of [`Files::content`].
    pub fn file(&self, server: ServerId, disk: u16, epoch: u64, part: u32) -> FileDescription {
        describe(disk, epoch, part, &self.content(server, disk, epoch, part))
    }

    /// A commit of disks, each with its epoch and parts.
    pub fn commit(&self, server: ServerId, seconds: i64, disks: &[(u16, u64, u32)]) -> CommitPoint {
        let time = at(seconds);
        let sealed = |(disk, epoch, parts): &(u16, u64, u32)| SealDisk {
            disk: DiskNumber(*disk),
            epoch: Epoch(*epoch),
            parts: *parts,
            bytes: 1 << 30,
        };
        let files = |(disk, epoch, parts): &(u16, u64, u32)| {
            (0..*parts).map(|part| self.file(server, *disk, *epoch, part)).collect::<Vec<_>>()
        };
        let capture =
            CaptureFigures { duration_us: 900, window_us: 80, attempts: 1, ..CaptureFigures::default() };
        CommitPoint {
            server,
            seal: SealPoint {
                point: point(server, seconds),
                time,
                kind: PointKind::Crash,
                disks: disks.iter().map(sealed).collect(),
                removed: Vec::new(),
                capture,
            },
            files: disks.iter().flat_map(files).collect(),
            sealed_at: time,
            uploaded_at: time,
        }
    }
}

pub fn describe(disk: u16, epoch: u64, part: u32, content: &[u8]) -> FileDescription {
    let verified = lifeboat_hrl::verify_file(content).unwrap();
    FileDescription {
        disk: DiskNumber(disk),
        epoch: Epoch(epoch),
        part: Part(part),
        bytes: content.len() as u64,
        digest: verified.summary.digest,
        plain_bytes: verified.summary.plain_bytes,
    }
}

/// The content of a file of [`SERVER`].
pub fn content(disk: u16, epoch: u64, part: u32) -> Bytes {
    Files::counted().content(SERVER, disk, epoch, part)
}

pub fn file(disk: u16, epoch: u64, part: u32) -> FileDescription {
    Files::counted().file(SERVER, disk, epoch, part)
}

pub async fn upload(vault: &Vault, server: ServerId, file: &FileDescription) -> Result<(), VaultError> {
    let request = GrantRequest { server, file: file.clone() };
    let grant = vault.grant(PROCESS_SERVER, &request, at(2)).await?;
    if grant.stored {
        return Ok(());
    }
    let content = Files::counted().content(server, file.disk.0, file.epoch.0, file.part.0);
    send(vault, &grant.url, &[content]).await
}

/// Sends pieces to the place that a grant names.
pub async fn send(vault: &Vault, url: &str, pieces: &[Bytes]) -> Result<(), VaultError> {
    let token = url.strip_prefix("/v1/objects/").unwrap();
    let body = stream::iter(pieces.iter().cloned().map(Ok::<_, std::io::Error>));
    vault.receive(PROCESS_SERVER, token, body, at(3)).await
}

/// [`Files::commit`] of a vault with [`Counted`] ids and keys.
pub fn commit(server: ServerId, seconds: i64, disks: &[(u16, u64, u32)]) -> CommitPoint {
    Files::counted().commit(server, seconds, disks)
}

/// The id of the point that [`commit`] makes.
pub fn point(server: ServerId, seconds: i64) -> PointId {
    PointId::new(server.number() ^ u64::try_from(seconds).unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

pub async fn upload_all(vault: &Vault, commit: &CommitPoint) -> Result<(), VaultError> {
    for file in &commit.files {
        upload(vault, commit.server, file).await?;
    }
    Ok(())
}

pub async fn take(vault: &Vault, seconds: i64, disks: &[(u16, u64, u32)]) -> CommitReceipt {
    let commit = commit(SERVER, seconds, disks);
    upload_all(vault, &commit).await.unwrap();
    vault.commit_point(PROCESS_SERVER, &commit, at(seconds + 1)).await.unwrap()
}

/// The ids of a server's points, oldest first.
pub async fn listed(vault: &Vault, server: ServerId) -> Vec<PointId> {
    let mut points: Vec<_> =
        vault.points(server, 1000).await.unwrap().into_iter().map(|point| point.id).collect();
    points.reverse();
    points
}

/// Checks that every listed point has every file that it needs, with the right content.
pub async fn check_all_points(vault: &Vault) {
    for server in vault.catalog().servers().await.unwrap() {
        for point in vault.points(server.id, 1000).await.unwrap() {
            for disk in &point.disks {
                let (_, files) = vault.files_of_point(point.id, disk.disk).await.unwrap();
                for file in files {
                    let stored = vault.store().verify(&file.object).await.unwrap();
                    let stored = stored.expect("a listed point has its files").unwrap().summary;
                    assert_eq!((stored.bytes, stored.digest), (file.bytes, file.digest), "{}", file.object);
                }
            }
        }
    }
}

/// All files below a directory, relative to it, sorted.
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

/// The rows of the tables that a rebuild restores, as text, without what is only ever learnt anew.
pub async fn rows(state: &Path) -> Vec<String> {
    use sqlx::Row;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(state.join("catalog.sqlite"));
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let mut rows = Vec::new();
    for (table, columns) in [
        ("vault", "id || created_ns"),
        ("servers", "id || name || policy || registered_ns"),
        ("disks", "server || disk || path || COALESCE(hardware_id, '-') || bytes || removed"),
        ("disk_keys", "server || disk || key_id || wrapped || created_ns"),
        (
            "points",
            "id || server || number || time_ns || kind || capture || sealed_ns || uploaded_ns || committed_ns || commit_digest",
        ),
        ("point_disks", "point || server || disk || epoch || bytes || files"),
        (
            "files",
            "object || server || disk || first_epoch || last_epoch || part || bytes || digest || plain_bytes",
        ),
        ("server_facts", "server || facts || received_ns"),
    ] {
        let query = sqlx::AssertSqlSafe(format!("SELECT {columns} FROM {table} ORDER BY 1"));
        for row in sqlx::query(query).fetch_all(&pool).await.unwrap() {
            rows.push(format!("{table}: {}", row.get::<String, _>(0)));
        }
    }
    pool.close().await;
    rows
}
