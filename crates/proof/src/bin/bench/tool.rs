//! The peers: a pipeline of tools, and backup programs into a local repository.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Took, timed, version};
use crate::replication::disk_usage;

/// `zstd -1 -T2` of the file, piped to AES-256-CTR, into a file. Answers the time and the bytes.
pub fn pipeline(image: &Path, scratch: &Path) -> (Took, f64) {
    let out = scratch.join("pipeline.out");
    let line = format!(
        "set -o pipefail; zstd -1 -T2 --quiet --stdout '{}' | openssl enc -aes-256-ctr -K {} -iv {} > '{}'",
        image.display(),
        "07".repeat(32),
        "09".repeat(16),
        out.display()
    );
    let took = timed(Command::new("bash").args(["-c", &line]));
    let bytes = fs::metadata(&out).unwrap().len();
    fs::remove_file(out).unwrap();
    #[allow(clippy::cast_precision_loss, reason = "a size for people")]
    let bytes = bytes as f64;
    (took, bytes)
}

pub const PIPELINE: &str = "zstd -1 -T2 | openssl enc -aes-256-ctr";

/// A backup program with a repository.
pub struct BackupTool {
    pub name: &'static str,
    /// What exactly was run, for the table.
    pub about: String,
    home: TempDir,
    backups: u32,
}

const TOOLS: [&str; 3] = ["restic", "rustic", "borg"];

/// Those that are installed, each with an empty repository below `scratch`.
pub fn installed(scratch: &Path) -> Vec<BackupTool> {
    let found = TOOLS.into_iter().filter(|name| Command::new(name).arg("--version").output().is_ok());
    found.map(|name| BackupTool::new(name, scratch)).collect()
}

/// What is said of those that are not.
pub fn missing() -> Vec<&'static str> {
    TOOLS.into_iter().filter(|name| Command::new(name).arg("--version").output().is_err()).collect()
}

impl BackupTool {
    fn new(name: &'static str, scratch: &Path) -> Self {
        let home = tempfile::Builder::new().prefix(name).tempdir_in(scratch).unwrap();
        let version = version(name, if name == "restic" { "version" } else { "--version" });
        let how = match name {
            "borg" => "create --compression zstd,1 --chunker-params fixed,65536, repokey-blake2",
            _ => "backup, its defaults",
        };
        let tool = Self { name, about: format!("{version}: {how}"), home, backups: 0 };
        let words: &[&str] =
            if name == "borg" { &["init", "--encryption", "repokey-blake2"] } else { &["init"] };
        timed(tool.command().args(words));
        tool
    }

    /// Backs a file up.
    pub fn back_up(&mut self, image: &Path) -> Took {
        self.backups += 1;
        let mut command = self.command();
        if self.name == "borg" {
            let archive = format!("::number-{}", self.backups);
            command.args(["create", "--compression", "zstd,1", "--chunker-params", "fixed,65536", &archive]);
        } else {
            command.arg("backup");
        }
        timed(command.arg(image))
    }

    /// Bytes that the repository takes.
    pub fn stored_bytes(&self) -> f64 {
        disk_usage(&self.repository())
    }

    fn repository(&self) -> PathBuf {
        self.home.path().join("repository")
    }

    /// The program with its repository and its password; caches and keys stay below its home.
    fn command(&self) -> Command {
        let mut command = Command::new(self.name);
        let name = self.name.to_uppercase();
        command.env("HOME", self.home.path()).env("XDG_CACHE_HOME", self.home.path().join("cache"));
        command.env("BORG_PASSPHRASE", "peer").env("BORG_BASE_DIR", self.home.path());
        command.env("BORG_REPO", self.repository());
        command.env(format!("{name}_PASSWORD"), "peer").env(format!("{name}_REPOSITORY"), self.repository());
        // A changed device number or time of change would make borg ask.
        command.env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes");
        command
    }
}

/// Compresses bytes with `zstd -1` as one file; answers the compressed size.
pub fn zstd_bytes(bytes: &[u8], scratch: &Path) -> f64 {
    let (plain, packed) = (scratch.join("changed"), scratch.join("changed.zst"));
    fs::write(&plain, bytes).unwrap();
    timed(Command::new("zstd").args(["-1", "--quiet", "--force", "-o"]).arg(&packed).arg(&plain));
    let size = File::open(&packed).unwrap().metadata().unwrap().len();
    fs::remove_file(plain).unwrap();
    fs::remove_file(packed).unwrap();
    #[allow(clippy::cast_precision_loss, reason = "a size for people")]
    let size = size as f64;
    size
}
