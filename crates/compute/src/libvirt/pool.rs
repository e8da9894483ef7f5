//! A directory on libvirt's host, reached as one of its storage pools.
//!
//! The host may be another machine, so what lies there is listed, read and removed through libvirt alone. The
//! pool is made for the first machine of a vault and goes with its last.

use std::fs;
use std::path::Path;

use tokio::sync::Mutex;

use super::settings::ANSWER_LIMIT;
use super::virsh::{Virsh, is_absent};
use crate::error::ComputeError;

/// The vault's pool at its libvirt.
#[derive(Debug)]
pub(crate) struct Pool {
    name: String,
    /// The directory, on libvirt's host.
    directory: String,
    /// Whether it was seen to be there. Whoever has the lock is the only one that does something with the pool.
    ready: Mutex<bool>,
}

impl Pool {
    pub(crate) fn new(name: String, directory: String) -> Self {
        Self { name, directory, ready: Mutex::new(false) }
    }

    /// The path of a file in it, on libvirt's host.
    pub(crate) fn path_of(&self, file: &str) -> String {
        format!("{}/{file}", self.directory)
    }

    /// Makes it, unless it is there.
    pub(crate) async fn ensure(&self, virsh: &Virsh) -> Result<(), ComputeError> {
        let mut ready = self.ready.lock().await;
        self.make(virsh, &mut ready).await
    }

    async fn make(&self, virsh: &Virsh, ready: &mut bool) -> Result<(), ComputeError> {
        if *ready {
            return Ok(());
        }
        let known = match virsh.ask(&["pool-info", &self.name]).await? {
            Ok(known) => known,
            Err(why) if is_absent(&why) => {
                virsh
                    .must(&["pool-define-as", &self.name, "--type", "dir", "--target", &self.directory])
                    .await?
            }
            Err(why) => return Err(virsh.refused(&["pool-info"], why)),
        };
        let is_running = |line: &str| line.starts_with("State:") && line.ends_with("running");
        if !known.lines().any(is_running) {
            virsh.must(&["pool-start", &self.name, "--build"]).await?;
        }
        *ready = true;
        Ok(())
    }

    /// What a file has from a byte on, brought through a file in `place`; none if it is not there.
    pub(crate) async fn read(
        &self,
        virsh: &Virsh,
        file: &str,
        from: u64,
        place: &Path,
    ) -> Result<Option<Vec<u8>>, ComputeError> {
        const PART: &str = "download";
        let mut ready = self.ready.lock().await;
        self.make(virsh, &mut ready).await?;
        let name = &self.name;
        // Files that others made are in the pool once it was refreshed.
        let both = format!("pool-refresh {name}; vol-download --pool {name} {file} {PART} --offset {from}");
        let answer = virsh.ask_in(place, &[&both], ANSWER_LIMIT).await?;
        let part = place.join(PART);
        let read = match answer {
            Ok(_) => fs::read(&part).map(Some).map_err(ComputeError::io("read", &part)),
            Err(why) if is_absent(&why) => Ok(None),
            Err(why) => {
                // Perhaps its host was started anew, or somebody removed it.
                *ready = false;
                Err(virsh.refused(&["vol-download"], why))
            }
        };
        match fs::remove_file(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ComputeError::io("remove", part)(error))
            }
            _ => read,
        }
    }

    /// Makes a file of this size that begins with the content of a file in `place`.
    pub(crate) async fn write(
        &self,
        virsh: &Virsh,
        file: &str,
        bytes: u64,
        place: &Path,
        content: &str,
    ) -> Result<(), ComputeError> {
        let mut ready = self.ready.lock().await;
        self.make(virsh, &mut ready).await?;
        let bytes = format!("{bytes}B");
        virsh.must(&["vol-create-as", &self.name, file, &bytes, "--format", "raw"]).await?;
        let upload = ["vol-upload", "--pool", &self.name, file, content];
        let answer = virsh.ask_in(place, &upload, ANSWER_LIMIT).await?;
        answer.map(drop).map_err(|why| virsh.refused(&upload, why))
    }

    /// Removes all files whose names begin like this.
    pub(crate) async fn remove(&self, virsh: &Virsh, prefix: &str) -> Result<(), ComputeError> {
        let mut ready = self.ready.lock().await;
        let Some(files) = self.list(virsh, &mut ready).await? else { return Ok(()) };
        for file in files.iter().filter(|file| file.starts_with(prefix)) {
            let delete = ["vol-delete", "--pool", &self.name, file];
            match virsh.ask(&delete).await? {
                Err(why) if !is_absent(&why) => return Err(virsh.refused(&delete, why)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the pool and its directory, unless something is in it or `is_needed` says so.
    pub(crate) async fn remove_if_empty(
        &self,
        virsh: &Virsh,
        is_needed: impl FnOnce() -> Result<bool, ComputeError>,
    ) -> Result<(), ComputeError> {
        let mut ready = self.ready.lock().await;
        // Asked now, since whoever begins to need it waits for the lock.
        if is_needed()? {
            return Ok(());
        }
        let Some(files) = self.list(virsh, &mut ready).await? else { return Ok(()) };
        if !files.is_empty() {
            return Ok(());
        }
        *ready = false;
        virsh.must(&["pool-destroy", &self.name]).await?;
        virsh.must(&["pool-delete", &self.name]).await?;
        virsh.must(&["pool-undefine", &self.name]).await.map(drop)
    }

    /// The names of all files in it; none if it is not there.
    async fn list(&self, virsh: &Virsh, ready: &mut bool) -> Result<Option<Vec<String>>, ComputeError> {
        let list = ["vol-list", "--pool", &self.name];
        match virsh.ask(&["pool-info", &self.name]).await? {
            Err(why) if is_absent(&why) => {
                *ready = false;
                return Ok(None);
            }
            Err(why) => return Err(virsh.refused(&["pool-info"], why)),
            Ok(_) => self.make(virsh, ready).await?,
        }
        virsh.must(&["pool-refresh", &self.name]).await?;
        let table = virsh.must(&list).await?;
        let in_it = format!("{}/", self.directory);
        let rows = table.lines().filter(|row| row.contains(&in_it));
        Ok(Some(rows.filter_map(|row| row.split_whitespace().next()).map(str::to_owned).collect()))
    }
}
