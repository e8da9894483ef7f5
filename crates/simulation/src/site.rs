//! A process server: the real gateway on a real directory.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lifeboat_agent::engine::OpenEpoch;
use lifeboat_hrl::{FileId, FileSummary, Writer};
use lifeboat_model::{Part, ServerId, blocks_of_bytes};
use lifeboat_process_server::{Gateway, PartPlace, PartTicket, Pauses, Refusal, StateDir, StateError};
use lifeboat_wire::stream::{Decoder, Message};
use rand::Rng;
use rand::rngs::StdRng;

/// A process server that may be down.
pub struct Site {
    pub path: PathBuf,
    pub gateway: Option<Arc<Gateway>>,
}

/// A part on its way into the spool.
pub enum Written {
    Durable(FileSummary),
    Refused(Refusal),
}

impl Site {
    pub fn new(path: PathBuf, wall: Timestamp) -> Self {
        let mut site = Self { path, gateway: None };
        site.open(wall).unwrap();
        site
    }

    pub fn open(&mut self, wall: Timestamp) -> Result<(), StateError> {
        let pauses =
            Pauses { unreachable_max: Duration::from_secs(30), refused_max: Duration::from_secs(300) };
        self.gateway = Some(Arc::new(Gateway::open(StateDir::open(&self.path)?, pauses, wall)?));
        Ok(())
    }

    /// All files of spool, points and servers.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for name in ["spool", "points", "servers"] {
            collect(&self.path.join(name), &mut found);
        }
        found.sort();
        found
    }

    pub fn spool_path(&self, server: ServerId, open: OpenEpoch) -> PathBuf {
        let OpenEpoch { disk, epoch, part } = open;
        self.path.join(format!("spool/{server}/{disk}/{epoch}-{part}.hrl"))
    }
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { collect(&path, found) } else { found.push(path) }
    }
}

pub fn begin(
    gateway: &Gateway,
    (server, writer): (ServerId, u64),
    open: OpenEpoch,
    random: &mut StdRng,
) -> Result<PartTicket, Refusal> {
    let id = FileId(random.random());
    let OpenEpoch { disk, epoch, part } = open;
    gateway.begin_part(PartPlace { server, disk, epoch, part: Part(part), writer }, id, 1)
}

/// Writes what came of a stream, in pieces of any size. Whole and synced, or refused.
pub fn write(ticket: &PartTicket, stream: &[u8], random: &mut StdRng) -> Result<FileSummary, Refusal> {
    let file = OpenOptions::new().write(true).create_new(true).open(&ticket.partial).unwrap();
    let mut writer = Writer::new(file, &ticket.sealer).map_err(Refusal::Write)?;
    let mut decoder = Decoder::new(blocks_of_bytes(ticket.disk_bytes()));
    let mut rest = Bytes::copy_from_slice(stream);
    while !rest.is_empty() {
        let most = if random.random_ratio(1, 4) { 50 } else { 100_000 };
        let piece = rest.split_to(random.random_range(1..=rest.len().min(most)));
        decoder.push(piece);
        while let Some(message) = decoder.next_message()? {
            match message {
                Message::Zeroes { extent } => writer.zeroes(extent).map_err(Refusal::Write)?,
                Message::Data { extent, digest, bytes } => {
                    let frame = ticket.sealer.seal(writer.next_frame(), extent, &bytes, digest);
                    writer.append(frame.map_err(Refusal::Data)?).map_err(Refusal::Write)?;
                }
            }
        }
    }
    decoder.finish()?;
    let (file, summary) = writer.finish().map_err(Refusal::Write)?;
    File::sync_data(&file).unwrap();
    Ok(summary)
}

/// One part from its stream to its receipt.
pub fn receive(
    gateway: &Gateway,
    (server, writer): (ServerId, u64),
    open: OpenEpoch,
    stream: &[u8],
    random: &mut StdRng,
) -> Written {
    let ticket = match begin(gateway, (server, writer), open, random) {
        Ok(ticket) => ticket,
        Err(refusal) => return Written::Refused(refusal),
    };
    finish(gateway, &ticket, stream, random)
}

pub fn finish(gateway: &Gateway, ticket: &PartTicket, stream: &[u8], random: &mut StdRng) -> Written {
    let finished = write(ticket, stream, random)
        .and_then(|summary| gateway.finish_part(ticket, summary).map(|_| summary));
    match finished {
        Ok(summary) => Written::Durable(summary),
        Err(refusal) => {
            let _ = fs::remove_file(&ticket.partial);
            gateway.abandon_part(ticket);
            Written::Refused(refusal)
        }
    }
}
