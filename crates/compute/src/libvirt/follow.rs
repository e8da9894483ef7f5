//! The text of a guest's serial console, brought from libvirt's host.
//!
//! There QEMU, or libvirt's log daemon for it, appends to a file. The daemon keeps such files short: when one is
//! full it is renamed (`console.0`, `console.1`, …) and begun anew. What is new is appended to a file of the
//! vault whenever somebody asks, and is the vault's from then on. That the file is still the one that was read
//! from is known by the last bytes that came from it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::pool::Pool;
use super::virsh::Virsh;
use crate::directory::{CONSOLE, MachineDirectory, private_file};
use crate::error::ComputeError;

/// How far the host's file was read.
const PLACE: &str = "console-place.json";
/// By so many bytes a file is known again.
const KNOWN_BY_BYTES: u64 = 64;
/// How often the files are read again because they were renamed meanwhile.
const ATTEMPTS: u32 = 8;
/// The daemon keeps three old files unless it is told otherwise.
const OLD_FILES: u32 = 5;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// In the host's file.
    host: u64,
    /// In the vault's.
    vault: u64,
}

/// The name of a machine's console on libvirt's host.
pub(crate) fn file_of(domain: &str) -> String {
    format!("{domain}.console")
}

/// Brings what is new.
pub(crate) async fn bring(
    virsh: &Virsh,
    pool: &Pool,
    domain: &str,
    directory: &MachineDirectory,
) -> Result<(), ComputeError> {
    let path = directory.file(CONSOLE);
    let place = load(directory);
    let known = known_bytes(directory, place).map_err(ComputeError::io("read", &path))?;
    let from = place.host - known.len() as u64;
    let mut unread = None;
    for _ in 0..ATTEMPTS {
        unread = unread_parts(virsh, pool, domain, directory, (place, &known, from)).await?;
        if unread.is_some() {
            break;
        }
    }
    // Otherwise the files are renamed faster than they can be read: the next question finds it all.
    let unread = unread.unwrap_or_default();
    let Some(host) = unread.first().map(|(_, end)| *end) else { return Ok(()) };
    if unread.iter().all(|(part, _)| part.is_empty()) {
        return Ok(());
    }
    let bytes: Vec<u8> = unread.into_iter().rev().flat_map(|(part, _)| part).collect();
    append(directory, place, host, &bytes).map_err(ComputeError::io("write", path))
}

/// What was not read yet, each part with where it ends in its file: of the newest file first, then of older
/// ones until that which was read before. `None` when the files were renamed meanwhile: one may have been
/// read twice.
async fn unread_parts(
    virsh: &Virsh,
    pool: &Pool,
    domain: &str,
    directory: &MachineDirectory,
    (place, known, from): (Place, &[u8], u64),
) -> Result<Option<Vec<(Vec<u8>, u64)>>, ComputeError> {
    let mut unread = Vec::new();
    let newest = file_of(domain);
    let old = (0..OLD_FILES).map(|number| format!("{newest}.{number}"));
    for name in std::iter::once(newest.clone()).chain(old) {
        let Some(mut tail) = pool.read(virsh, &name, from, directory.path()).await? else { break };
        let is_known = place.vault > 0 && tail.starts_with(known);
        if is_known {
            tail.drain(..known.len());
        } else if from > 0 {
            let Some(whole) = pool.read(virsh, &name, 0, directory.path()).await? else { break };
            tail = whole;
        }
        let begins = if is_known { place.host } else { 0 };
        let ends = begins + tail.len() as u64;
        unread.push((tail, ends));
        if is_known {
            break;
        }
    }
    // With one file there was nothing between two readings.
    if let [(first, _), _, ..] = unread.as_slice() {
        let again = pool.read(virsh, &newest, 0, directory.path()).await?.unwrap_or_default();
        if !again.starts_with(first) {
            return Ok(None);
        }
    }
    Ok(Some(unread))
}

fn load(directory: &MachineDirectory) -> Place {
    // What cannot be read is read again from the beginning of what the host still has.
    fs::read(directory.file(PLACE))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// The last bytes that came from the host's file.
fn known_bytes(directory: &MachineDirectory, place: Place) -> io::Result<Vec<u8>> {
    let len = KNOWN_BY_BYTES.min(place.host).min(place.vault);
    let mut known = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    if len > 0 {
        File::open(directory.file(CONSOLE))?.read_exact_at(&mut known, place.vault - len)?;
    }
    Ok(known)
}

fn append(directory: &MachineDirectory, place: Place, host: u64, bytes: &[u8]) -> io::Result<()> {
    let path = directory.file(CONSOLE);
    if !path.exists() {
        private_file(&path)?;
    }
    let file = File::options().write(true).open(path)?;
    // What was written and not noted is written again.
    file.write_all_at(bytes, place.vault)?;
    let vault = place.vault + bytes.len() as u64;
    file.set_len(vault)?;
    let (path, new) = (directory.file(PLACE), directory.file("console-place.new"));
    fs::write(&new, serde_json::to_vec(&Place { host, vault })?)?;
    fs::rename(new, path)
}
