//! The key with which the vault logs in to servers' machines, and the host keys by which it knows them.
//!
//! A machine is known as its server is: a copy has its original's host key. The first one that is seen for a
//! server is taken and asked for from then on, whatever address its machines have. It is forgotten when an
//! operator sets the server's target anew.

use std::io;
use std::path::{Path, PathBuf};

use lifeboat_compute::SshAccess;
use lifeboat_model::{ServerId, VaultId};
use lifeboat_trust::FileError;
use lifeboat_trust::private_file::{create_private_directory, sync_directory_of};
use tokio::process::Command;
use tokio::sync::Mutex;

const KEY: &str = "key";

/// The vault's key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The program that makes keys is missing.
    #[error(
        "ssh-keygen is not installed on the vault's machine: install the Debian package openssh-client, then try again"
    )]
    NoProgram,
    /// It does not make a key, or not read one.
    #[error("ssh-keygen cannot use {}: {why}; remove that file for a new key, which servers have to be told", path.display())]
    Program {
        /// The private key.
        path: PathBuf,
        /// What it said.
        why: String,
    },
}

/// The vault's key and what it knows of hosts, in a directory of its own.
#[derive(Debug)]
pub(crate) struct SshIdentity {
    directory: PathBuf,
    vault: VaultId,
    /// Held while the key is made.
    making: Mutex<()>,
}

impl SshIdentity {
    /// The identity in the vault's state directory. Nothing is made yet.
    pub fn new(state: &Path, vault: VaultId) -> Self {
        Self { directory: state.join("ssh"), vault, making: Mutex::default() }
    }

    /// With what a server's machines are logged in to. If it `is_needed`, the key is made when there is none.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn access(&self, server: ServerId, is_needed: bool) -> Result<SshAccess, SshError> {
        let (known_hosts, host) = (self.known_hosts(server), server.to_string());
        let key_file = if is_needed { self.key_file().await? } else { self.directory.join(KEY) };
        Ok(SshAccess { key_file, known_hosts, host })
    }

    /// The line that lets the vault in. The key is made when there is none.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub async fn public_key(&self) -> Result<String, SshError> {
        let key = self.key_file().await?;
        let said = keygen(&key, &["-y", "-P", ""]).await?;
        Ok(said.trim().to_owned())
    }

    /// Whatever host key the server's machine shows next is its own.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn forget_host(&self, server: ServerId) -> Result<(), SshError> {
        let path = self.known_hosts(server);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::io("remove", &path)(error).into())
            }
            _ => Ok(()),
        }
    }

    fn known_hosts(&self, server: ServerId) -> PathBuf {
        self.directory.join(format!("known-host-{server}"))
    }

    async fn key_file(&self) -> Result<PathBuf, SshError> {
        let _one_at_a_time = self.making.lock().await;
        let key = self.directory.join(KEY);
        if key.exists() {
            return Ok(key);
        }
        create_private_directory(&self.directory)?;
        let new = self.directory.join("key.new");
        // Of an attempt that was cut short.
        let _ = std::fs::remove_file(&new);
        let comment = format!("lifeboat-vault-{}", self.vault);
        keygen(&new, &["-q", "-t", "ed25519", "-N", "", "-C", &comment]).await?;
        // The public key can be had from the private one, so there is one file that counts.
        let _ = std::fs::remove_file(self.directory.join("key.new.pub"));
        let keep = || {
            std::fs::File::open(&new)?.sync_all()?;
            std::fs::rename(&new, &key)
        };
        keep().map_err(FileError::io("create", &key))?;
        sync_directory_of(&key)?;
        tracing::info!(key = %key.display(), "made the key with which the vault logs in to servers' machines");
        Ok(key)
    }
}

/// Runs `ssh-keygen` with a private key; answers what it printed.
async fn keygen(key: &Path, arguments: &[&str]) -> Result<String, SshError> {
    let mut program = Command::new("ssh-keygen");
    program.args(arguments).arg("-f").arg(key).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let failed = |why: String| SshError::Program { path: key.to_owned(), why };
    let output = match program.output().await {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(SshError::NoProgram),
        Err(error) => return Err(failed(error.to_string())),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        return Err(failed(last.trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
