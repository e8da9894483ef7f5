//! A server for a test, and real clients to run against it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_nbd::{Limits, NbdServer, unix_uri};
use tempfile::TempDir;
use tokio::process::Command;

use crate::export::SparseDisk;

/// A client that takes longer hangs.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Bench {
    pub server: NbdServer,
    pub folder: TempDir,
}

impl Bench {
    pub async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = NbdServer::new(limits);
        server.listen_unix(&folder.path().join("nbd.sock")).await.unwrap();
        Self { server, folder }
    }

    /// A bench that serves `disk` under the name `disk`.
    pub async fn serving(disk: &Arc<SparseDisk>) -> Self {
        let bench = Self::new().await;
        bench.server.add("disk", Arc::clone(disk) as _).unwrap();
        bench
    }

    pub fn socket(&self) -> PathBuf {
        self.path("nbd.sock")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text_path(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn uri(&self, name: &str) -> String {
        unix_uri(name, &self.socket())
    }

    /// Runs Python with a connected libnbd handle `h`.
    pub async fn shell(&self, script: &str) -> String {
        shell_at(&["--base-allocation", "-u", &self.uri("disk")], script).await
    }
}

/// Runs Python with a libnbd handle `h`; fails with what it printed if it fails.
pub async fn shell_at(options: &[&str], script: &str) -> String {
    let mut arguments = options.to_vec();
    arguments.extend(["-c", script]);
    run("nbdsh", &arguments).await
}

/// Runs a client that must succeed, and returns what it printed.
pub async fn run(program: &str, arguments: &[&str]) -> String {
    let output = try_run(program, arguments).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?} failed with {}\n{out}\n{err}", output.status);
    out.into_owned()
}

pub async fn try_run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    // Python from elsewhere on the path would not find the system's libnbd.
    command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(CLIENT_TIMEOUT, command.output()).await {
        Err(_) => panic!("{program} {arguments:?} hangs"),
        Ok(Err(error)) => panic!(
            "{program} cannot be run ({error}): install libnbd-bin, python3-libnbd, qemu-utils and fio"
        ),
        Ok(Ok(output)) => output,
    }
}

/// Bytes that are the same for the same seed, and never all zero in a page.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Writes islands of data with holes between, and returns the whole content.
pub fn fill(disk: &SparseDisk, size: usize) -> Vec<u8> {
    let mut content = vec![0; size];
    let mut at = 0;
    let mut seed = 1;
    while at < size {
        let len = (4096 * (1 + seed * 7 % 61)).min(size - at);
        if seed % 2 == 1 {
            let data = noise(seed as u64, len);
            disk.put(at as u64, &data);
            content[at..at + len].copy_from_slice(&data);
        }
        at += len;
        seed += 1;
    }
    content
}

pub fn same(left: &Path, right: &[u8]) {
    let left = std::fs::read(left).unwrap();
    assert_eq!(left.len(), right.len());
    let differing = left.iter().zip(right).position(|(a, b)| a != b);
    assert_eq!(differing, None, "first difference at this byte");
}
