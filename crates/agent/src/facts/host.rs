//! Reading of a server's files: bounded, and not while file systems are frozen.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes of the longest text that is read where nothing else is said.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// Entries of a directory that are looked at.
const ENTRIES_MAX: usize = 4096;

/// A server's files.
pub(crate) struct Host {
    root: PathBuf,
    /// Returns when reading may go on.
    pause: Box<dyn Fn() + Send>,
}

impl Host {
    /// The files below `root`; `pause` is called before each reading.
    pub fn new(root: impl Into<PathBuf>, pause: impl Fn() + Send + 'static) -> Self {
        Self { root: root.into(), pause: Box::new(pause) }
    }

    /// Where an absolute path of the server is.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.root.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    pub fn has(&self, absolute: impl AsRef<Path>) -> bool {
        self.path(absolute).exists()
    }

    /// Returns when reading may go on.
    pub fn pause(&self) {
        (self.pause)();
    }

    pub fn open(&self, absolute: impl AsRef<Path>) -> io::Result<File> {
        self.pause();
        File::open(self.path(absolute))
    }

    /// The text of a file, or one clause that says why it cannot be had. What is no UTF-8 is replaced.
    pub fn text(&self, absolute: impl AsRef<Path>) -> Result<String, String> {
        self.long_text(absolute, TEXT_BYTES_MAX)
    }

    pub fn long_text(&self, absolute: impl AsRef<Path>, bytes_max: u64) -> Result<String, String> {
        let absolute = absolute.as_ref();
        let read = || {
            let mut bytes = Vec::new();
            self.open(absolute)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
            io::Result::Ok(bytes)
        };
        let bytes = read().map_err(|error| format!("{} cannot be read: {error}", absolute.display()))?;
        if bytes.len() as u64 > bytes_max {
            return Err(format!("{} has more than {bytes_max} bytes", absolute.display()));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The first line of a short file, where there is one.
    pub fn word(&self, absolute: impl AsRef<Path>) -> Option<String> {
        let text = self.text(absolute).ok()?;
        text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
    }

    /// The absolute paths of what is in a directory, by name; none when it is not there.
    pub fn entries(&self, absolute: &str) -> Vec<PathBuf> {
        self.pause();
        let Ok(entries) = fs::read_dir(self.path(absolute)) else { return Vec::new() };
        let names =
            entries.flatten().take(ENTRIES_MAX).map(|entry| Path::new(absolute).join(entry.file_name()));
        let mut paths: Vec<_> = names.collect();
        paths.sort();
        paths
    }
}

/// The last part of a path as text.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
