//! The way out when changes of a server in the spool are damaged.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_model::ServerId;
use lifeboat_trust::private_file::create_private_directory;

use crate::state_dir::{StateDir, StateError, sync_directory};

/// Moves everything that the state directory holds of one server to `set-aside/` in it, and says where.
/// The process server must not run. Afterwards it knows nothing of the server, so the agent learns
/// the newest committed epoch from the vault and compares its disks with the vault's copy.
///
/// # Errors
/// When the process server runs, or the system refuses; doing it again goes on where it stopped.
pub fn set_aside(state: &Path, server: ServerId, wall: Timestamp) -> Result<PathBuf, StateError> {
    let dir = StateDir::open(state)?;
    let aside = dir.join("set-aside");
    create_private_directory(&aside)?;
    let place = aside.join(format!("{server}-{}", wall.as_millisecond()));
    create_private_directory(&place)?;
    let shift = |from: PathBuf, name: &str| -> Result<(), StateError> {
        if !from.exists() {
            return Ok(());
        }
        fs::rename(&from, place.join(name)).map_err(StateError::io("move", &from))
    };
    // The points first: changes without points are found again, points without changes look damaged.
    let points = dir.join("points");
    let of_server = format!("-{server}-");
    for entry in fs::read_dir(&points).map_err(StateError::io("read", &points))? {
        let entry = entry.map_err(StateError::io("read", &points))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains(&of_server) {
            shift(entry.path(), &name)?;
        }
    }
    shift(dir.join("spool").join(server.to_string()), "spool")?;
    shift(dir.join("servers").join(format!("{server}.json")), "server.json")?;
    for name in ["points", "spool", "servers"] {
        sync_directory(&dir.join(name))?;
    }
    sync_directory(&place)?;
    Ok(place)
}
