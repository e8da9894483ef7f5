//! Seals a file, level by level, and says how fast and how small: `seal FILE [LEVEL...]`.

use std::error::Error;
use std::io::Cursor;
use std::time::Instant;

use lifeboat_hrl::{DiskKey, FileId, FileIdentity, Footer, FrameSealer, Index, Writer, verify_file_with_key};
use lifeboat_model::{
    BLOCK_BYTES, Digest, DiskNumber, Epoch, Extent, FRAME_BLOCKS, FRAME_BYTES, Part, ServerId, VaultId,
};

#[allow(clippy::cast_precision_loss, reason = "for people to read")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: seal FILE [LEVEL...]")?;
    let levels: Vec<i32> = args.map(|text| text.parse()).collect::<Result<_, _>>()?;
    let levels = if levels.is_empty() { vec![1, 2, 3] } else { levels };
    let mut data = std::fs::read(path)?;
    data.resize(data.len().next_multiple_of(BLOCK_BYTES), 0);
    let mib = data.len() as f64 / (1 << 20) as f64;
    let frames = frames(&data);
    let identity = FileIdentity {
        vault: VaultId::new(1),
        server: ServerId::new(1),
        disk: DiskNumber(0),
        first_epoch: Epoch(1),
        last_epoch: Epoch(1),
        part: Part(0),
        disk_bytes: data.len() as u64,
    };
    let key = DiskKey::new([1; 32]);
    for level in levels {
        let sealer = FrameSealer::new(identity, FileId([u8::try_from(level)?; 16]), &key, level)?;
        let mut writer = Writer::new(Vec::with_capacity(data.len()), &sealer)?;
        let (mut seal_s, mut append_s) = (0.0, 0.0);
        for (number, (extent, plain, digest)) in (0u32..).zip(&frames) {
            let begun = Instant::now();
            let frame = sealer.seal(number, *extent, plain, *digest)?;
            seal_s += begun.elapsed().as_secs_f64();
            let begun = Instant::now();
            writer.append(frame)?;
            append_s += begun.elapsed().as_secs_f64();
        }
        let (file, summary) = writer.finish()?;
        let begun = Instant::now();
        verify_file_with_key(Cursor::new(&file), &key)?;
        let verify_s = begun.elapsed().as_secs_f64();
        println!(
            "level {level}: {:.1} % of {mib:.0} MiB; seal {:.0} MiB/s, append {:.0} MiB/s, verify {:.0} MiB/s",
            summary.bytes as f64 * 100.0 / data.len() as f64,
            mib / seal_s,
            mib / append_s,
            mib / verify_s,
        );
    }
    time_indexes(&identity, &key)?;
    Ok(())
}

fn frames(data: &[u8]) -> Vec<(Extent, &[u8], Digest)> {
    let mut first = 0;
    data.chunks(FRAME_BYTES)
        .map(|plain| {
            let extent = Extent { first, blocks: (plain.len() / BLOCK_BYTES) as u64 };
            first += FRAME_BLOCKS;
            (extent, plain, Digest::of(plain))
        })
        .collect()
}

/// Opens one index of 1,000 entries a thousand times.
fn time_indexes(identity: &FileIdentity, key: &DiskKey) -> Result<(), Box<dyn Error>> {
    let identity = FileIdentity { disk_bytes: 1 << 40, ..*identity };
    let sealer = FrameSealer::new(identity, FileId([99; 16]), key, 1)?;
    let mut writer = Writer::new(Vec::new(), &sealer)?;
    for number in 0..800u32 {
        let plain = blake3::hash(&number.to_le_bytes()).as_bytes().repeat(BLOCK_BYTES / 32);
        let first = u64::from(number) * 7919 % 100_003;
        writer.append(sealer.seal(number, Extent { first, blocks: 1 }, &plain, Digest::of(&plain))?)?;
        if number % 4 == 0 {
            writer.zeroes(Extent { first: first + 100, blocks: 50 })?;
        }
    }
    let (file, summary) = writer.finish()?;
    let footer = Footer::parse(&file, file.len() as u64)?;
    let range = footer.index_range();
    let sealed = &file[usize::try_from(range.start)?..usize::try_from(range.end)?];
    let begun = Instant::now();
    for _ in 0..1000 {
        std::hint::black_box(Index::open(&footer, sealed, key)?);
    }
    let open_ms = begun.elapsed().as_secs_f64() * 1e3;
    let index = Index::open(&footer, sealed, key)?;
    let begun = Instant::now();
    for _ in 0..1000 {
        std::hint::black_box(index.effective());
    }
    let effective_ms = begun.elapsed().as_secs_f64() * 1e3;
    let entries = summary.frames + summary.zero_extents;
    println!(
        "1,000 indexes of {entries} entries, {} bytes each: open {open_ms:.0} ms, effective {effective_ms:.0} ms",
        sealed.len()
    );
    Ok(())
}
