//! How quickly disks open and are read: `open large` makes a disk of 1 TiB with 1,000 epochs and opens
//! it; `open serve IMAGE SOCKET` makes a disk from an image and serves it, to be read by NBD clients and
//! compared with other servers.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lifeboat_hrl::{DiskKey, FileId, FileIdentity, FrameSealer, LEVEL_DEFAULT, Writer};
use lifeboat_model::{
    BLOCK_BYTES, ByteCount, Digest, DiskNumber, Epoch, Extent, FRAME_BYTES, Part, PointId, ServerId, VaultId,
};
use lifeboat_nbd::{Limits, NbdServer};
use lifeboat_volume::{
    BootId, DiskSource, FileSource, FrameCache, Objects, OverlayIdentity, PointDisk, VolumeDisk,
};
use object_store::local::LocalFileSystem;

type Outcome<T> = Result<T, Box<dyn Error>>;

const CACHE_BYTES: usize = 256 << 20;
const TIB: u64 = 1 << 40;

struct Maker<'a> {
    root: &'a Path,
    source: DiskSource,
    key: DiskKey,
}

impl<'a> Maker<'a> {
    fn new(root: &'a Path, disk_bytes: u64) -> Self {
        let key = DiskKey::new([7; 32]);
        let source = DiskSource {
            vault: VaultId::new(1),
            server: ServerId::new(2),
            disk: DiskNumber(0),
            disk_bytes,
            files: Vec::new(),
            keys: vec![key.clone()],
        };
        Self { root, source, key }
    }

    /// Adds a file that `fill` writes.
    fn add(
        &mut self,
        epoch: u64,
        part: u32,
        fill: impl FnOnce(&FrameSealer, &mut Writer<BufWriter<File>>) -> Outcome<()>,
    ) -> Outcome<()> {
        let identity = FileIdentity {
            vault: self.source.vault,
            server: self.source.server,
            disk: self.source.disk,
            first_epoch: Epoch(epoch),
            last_epoch: Epoch(epoch),
            part: Part(part),
            disk_bytes: self.source.disk_bytes,
        };
        let file_id =
            FileId((u128::from(epoch) << 64 | u128::from(part)).wrapping_mul(0x9e37_79b9).to_le_bytes());
        let sealer = FrameSealer::new(identity, file_id, &self.key, LEVEL_DEFAULT)?;
        let object = format!("{epoch}-{part}.hrl");
        let file = File::create(self.root.join(&object))?;
        let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, file), &sealer)?;
        fill(&sealer, &mut writer)?;
        let (_, summary) = writer.finish()?;
        let (epoch, part) = (Epoch(epoch), Part(part));
        let (bytes, digest) = (summary.bytes, summary.digest);
        self.source.files.push(FileSource {
            object,
            bytes,
            digest,
            first_epoch: epoch,
            last_epoch: epoch,
            part,
        });
        Ok(())
    }

    async fn open(&self) -> Outcome<PointDisk> {
        let store = Arc::new(LocalFileSystem::new_with_prefix(self.root)?);
        let objects = Objects::new(store, Some(self.root.to_owned()));
        let (begun, cpu_begun) = (Instant::now(), cpu_ms());
        let disk = PointDisk::open(self.source.clone(), objects, FrameCache::new(CACHE_BYTES)).await?;
        println!(
            "opened {} files, {} pieces, in {:?} ({} ms of all processors); map and indexes hold {}",
            self.source.files.len(),
            disk.map().pieces(),
            begun.elapsed(),
            cpu_ms() - cpu_begun,
            ByteCount(disk.memory_bytes() as u64),
        );
        Ok(disk)
    }
}

/// Processor time of this program.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    // utime and stime, in hundredths of a second.
    10 * fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>()
}

fn append(
    sealer: &FrameSealer,
    writer: &mut Writer<BufWriter<File>>,
    extent: Extent,
    plain: &[u8],
) -> Outcome<()> {
    let frame = sealer.seal(writer.next_frame(), extent, plain, Digest::of(plain))?;
    Ok(writer.append(frame)?)
}

/// A base of a million frames all over 1 TiB, and 1,000 epochs of 1,000 frames each.
async fn large(root: &Path) -> Outcome<()> {
    let mut maker = Maker::new(root, TIB);
    let blocks = TIB / BLOCK_BYTES as u64;
    let mut plain = vec![0; BLOCK_BYTES];
    let mut state = 1u64;
    maker.add(1, 0, |sealer, writer| {
        for frame in 0..1_000_000 {
            plain[..8].copy_from_slice(&u64::to_le_bytes(frame));
            append(sealer, writer, Extent { first: frame * (blocks / 1_000_000), blocks: 1 }, &plain)?;
        }
        Ok(())
    })?;
    for epoch in 2..1002 {
        maker.add(epoch, 0, |sealer, writer| {
            for _ in 0..1000 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                plain[..8].copy_from_slice(&state.to_le_bytes());
                append(sealer, writer, Extent { first: (state >> 20) % blocks, blocks: 1 }, &plain)?;
            }
            Ok(())
        })?;
    }
    for _ in 0..3 {
        maker.open().await?;
    }
    Ok(())
}

async fn serve(root: &Path, image: &Path, socket: &Path, overlay: Option<&Path>) -> Outcome<()> {
    let mut image = File::open(image)?;
    let disk_bytes = image.metadata()?.len();
    let mut maker = Maker::new(root, disk_bytes);
    let mut plain = vec![0; FRAME_BYTES];
    maker.add(1, 0, |sealer, writer| {
        let mut at = 0;
        while at < disk_bytes {
            let len = usize::try_from((disk_bytes - at).min(FRAME_BYTES as u64))?;
            image.read_exact(&mut plain[..len])?;
            plain[len..].fill(0);
            let padded = &plain[..len.next_multiple_of(BLOCK_BYTES)];
            let extent =
                Extent { first: at / BLOCK_BYTES as u64, blocks: (padded.len() / BLOCK_BYTES) as u64 };
            if padded.iter().all(|byte| *byte == 0) {
                writer.zeroes(extent)?;
            } else {
                append(sealer, writer, extent, padded)?;
            }
            at += len as u64;
        }
        Ok(())
    })?;
    println!("stored {}", ByteCount(maker.source.files.iter().map(|file| file.bytes).sum()));
    let point = maker.open().await?;
    let DiskSource { vault, server, disk, .. } = maker.source;
    let identity = OverlayIdentity { vault, server, point: PointId::new(3), disk, disk_bytes };
    let volume = match overlay {
        Some(directory) => VolumeDisk::writable(point, String::new(), directory, identity, BootId::now()?)?,
        None => VolumeDisk::read_only(point, String::new()),
    };
    let nbd = NbdServer::new(Limits::default());
    nbd.add("", Arc::new(volume))?;
    nbd.listen_unix(socket).await?;
    println!("serving");
    tokio::signal::ctrl_c().await?;
    nbd.shutdown().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let root = tempfile::tempdir()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["large"] => large(root.path()).await,
        ["serve", image, socket] => serve(root.path(), image.as_ref(), socket.as_ref(), None).await,
        ["serve", image, socket, overlay] => {
            serve(root.path(), image.as_ref(), socket.as_ref(), Some(overlay.as_ref())).await
        }
        _ => Err("open large | open serve IMAGE SOCKET [OVERLAY]".into()),
    }
}
