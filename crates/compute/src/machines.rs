//! The directories of all machines of a provider, and who may work on which.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use lifeboat_model::MachineId;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::Mutex;

use crate::directory::MachineDirectory;
use crate::error::ComputeError;

const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// The machines of one state directory.
#[derive(Debug)]
pub(crate) struct Machines {
    path: PathBuf,
    /// One operation at a time for each machine.
    locks: std::sync::Mutex<HashMap<MachineId, Arc<Mutex<()>>>>,
}

impl Machines {
    /// Opens a state directory, which is made if it is not there. It is this provider's as long as the file is
    /// open that comes with it.
    pub(crate) fn open(state: &Path) -> Result<(Self, File), ComputeError> {
        let path = state.join("machines");
        fs::create_dir_all(&path).map_err(ComputeError::io("create", &path))?;
        fs::set_permissions(state, Permissions::from_mode(0o700))
            .map_err(ComputeError::io("protect", state))?;
        let lock = lock(state)?;
        // Processes are known by where they work, and the kernel names that without links and dots.
        let path = fs::canonicalize(&path).map_err(ComputeError::io("find", &path))?;
        Ok((Self { path, locks: std::sync::Mutex::default() }, lock))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of a machine, which may not be there.
    pub(crate) fn directory(&self, machine: MachineId) -> MachineDirectory {
        MachineDirectory::new(&self.path, machine)
    }

    /// All that have a directory.
    pub(crate) fn list(&self) -> Result<Vec<MachineId>, ComputeError> {
        let entries = fs::read_dir(&self.path).map_err(ComputeError::io("list", &self.path))?;
        let mut machines = Vec::new();
        for entry in entries {
            let entry = entry.map_err(ComputeError::io("list", &self.path))?;
            machines.extend(entry.file_name().to_str().and_then(|name| name.parse::<MachineId>().ok()));
        }
        machines.sort_unstable();
        Ok(machines)
    }

    /// Whoever has it is the only one that works on the machine.
    pub(crate) fn lock_of(&self, machine: MachineId) -> Arc<Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(machine).or_default())
    }
}

/// Locks a state directory. Programs that the one before was just starting hold its lock until they run.
fn lock(state: &Path) -> Result<File, ComputeError> {
    let path = state.join("lock");
    let file =
        File::options().create(true).append(true).open(&path).map_err(ComputeError::io("open", &path))?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ComputeError::InUse { path: state.to_owned() }),
            Err(errno) => return Err(ComputeError::io("lock", path)(io::Error::from(errno))),
        }
    }
}
