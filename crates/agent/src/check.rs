//! Whether this server can be protected.

use std::path::{Path, PathBuf};

use lifeboat_capture::DiskReader;
use lifeboat_model::{ByteCount, DiskNumber};
use lifeboat_tracker::{BpfFs, DiskDevice, check_support};
use serde::Serialize;

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The disk that it is about, as it was named; absent for the kernel.
    pub disk: Option<PathBuf>,
    /// Whether it speaks for protection.
    pub good: bool,
    /// One sentence; for a bad one with what to do.
    pub sentence: String,
}

/// Checks the kernel, and the disks that are named or all that there are. The second value says
/// whether everything that was named can be protected.
#[must_use]
pub fn check(disks: &[PathBuf]) -> (Vec<Finding>, bool) {
    let mut findings = vec![check_kernel()];
    let mut good = findings[0].good;
    if disks.is_empty() {
        let found: Vec<Finding> = all_disks().iter().map(|path| check_disk(path)).collect();
        if found.is_empty() {
            findings.push(bad(None, "no disk was found in /sys/block; name one with --disk".into()));
        }
        // Some of them are not meant to be protected, such as the parts of a RAID.
        good &= found.iter().any(|finding| finding.good);
        findings.extend(found);
    } else {
        let found: Vec<Finding> = disks.iter().map(|path| check_disk(path)).collect();
        good &= found.iter().all(|finding| finding.good);
        findings.extend(found);
    }
    (findings, good)
}

fn bad(disk: Option<&Path>, sentence: String) -> Finding {
    Finding { disk: disk.map(Path::to_owned), good: false, sentence }
}

fn check_kernel() -> Finding {
    match check_support() {
        Ok(support) => {
            let bpffs = match support.bpffs {
                BpfFs::Mounted => "",
                BpfFs::Mountable => "; the agent will mount /sys/fs/bpf",
            };
            let sentence = format!(
                "Linux {} can track changed blocks ({}{bpffs})",
                support.kernel_release,
                support.variant.as_str()
            );
            Finding { disk: None, good: true, sentence }
        }
        Err(error) => bad(None, error.to_string()),
    }
}

fn check_disk(path: &Path) -> Finding {
    let device = match DiskDevice::inspect(path) {
        Ok(device) => device,
        Err(error) => return bad(Some(path), format!("{}: {error}", path.display())),
    };
    if let Err(error) = DiskReader::open(DiskNumber(0), path) {
        return bad(Some(path), format!("{}: {error}", path.display()));
    }
    let names: Vec<&str> =
        [&device.model, &device.serial].into_iter().flatten().map(String::as_str).collect();
    let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(" ")) };
    let read_only = if device.read_only { "; it is read-only, so no change is expected" } else { "" };
    let tracked = device.tracked_by(None).map_or_else(String::new, |agent| {
        format!("; the agent with process {} does it already ({})", agent.process, agent.directory.display())
    });
    let sentence = format!(
        "{}{names}, {}, can be protected{read_only}{tracked}",
        path.display(),
        ByteCount(device.size_bytes)
    );
    Finding { disk: Some(path.to_owned()), good: true, sentence }
}

/// The whole disks with a medium, but for RAM disks and the like.
fn all_disks() -> Vec<PathBuf> {
    let names = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = names
        .map(|entry| entry.file_name().to_string_lossy().replace('!', "/"))
        .filter(|name| {
            !["ram", "loop", "zram", "sr", "fd", "dm-", "md"].iter().any(|kind| name.starts_with(kind))
        })
        .map(|name| PathBuf::from(format!("/dev/{name}")))
        .collect();
    found.sort();
    found
}
