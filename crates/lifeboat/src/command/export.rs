//! `lifeboat volume export`: one disk of a point as an image file.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lifeboat_api::{ExportFormat, OpenVolume};
use lifeboat_client::Vault;
use lifeboat_model::{DiskNumber, Span};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;
use crate::reach::Way;
use crate::site::Site;

/// The export's volume closes when nobody reads it for so long: that is, when this program and
/// `qemu-img` are gone.
const LEASE: Span = Span::seconds(30);
/// How long a vault may be away in the middle of an export; it goes on where it was.
const RECONNECT_SECONDS: u64 = 300;

/// What is exported.
pub struct Export<'a> {
    pub server: &'a str,
    pub point: String,
    pub disk: DiskNumber,
    pub format: ExportFormat,
    pub file: &'a Path,
}

/// Copies one disk of a point to an image: opens it read-only, lets `qemu-img` write the format, closes it.
pub async fn export(site: &Site, vault: &Vault, what: Export<'_>) -> Result<(), Failure> {
    let Export { server, point, disk, format, file } = what;
    let file = std::path::absolute(file)?;
    let exists = || Failure::new(format!("{} exists; name a file that does not", file.display()));
    if file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    look_for_qemu_img().await?;
    // Written in a directory of its own beside the file and then renamed, so that a name never
    // stands for half an image, and two exports are not in each other's way.
    let folder = file.parent().unwrap_or(Path::new("/"));
    let place = tempfile::Builder::new().prefix(".lifeboat-export-").tempdir_in(folder).map_err(|error| {
        Failure::new(format!("cannot write in {}: {error}; name another place", folder.display()))
    })?;
    let partial = place.path().join("image");
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let request = OpenVolume { point: Some(point), disk: Some(disk), read_only: true, lease: Some(LEASE) };
    let opened = vault.open_volume(server, &request).await?;
    let convert = async {
        match opened.disks.first() {
            Some(disk) => convert(&Way::to(site, disk)?, format, &partial, folder).await,
            None => Err(Failure::new(format!("the vault opened no disk {disk} of {server}"))),
        }
    };
    let interrupted = || Err(Failure::new(format!("interrupted; {} was not written", file.display())));
    let outcome = tokio::select! {
        outcome = convert => outcome,
        _ = interrupt.recv() => interrupted(),
        _ = terminate.recv() => interrupted(),
    };
    // The volume goes whatever came of the copy. A vault that cannot be asked closes it by itself.
    let _ = vault.close_volume(&opened.volume.to_string(), true).await;
    outcome?;
    // Whoever may read the image may read all that is on the disk.
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o600))?;
    renameat_with(CWD, &partial, CWD, &file, RenameFlags::NOREPLACE).map_err(|error| match error {
        rustix::io::Errno::EXIST => exists(),
        error => Failure::new(format!("cannot name the image {}: {error}", file.display())),
    })
}

async fn look_for_qemu_img() -> Result<(), Failure> {
    let found = Command::new("qemu-img").arg("--version").output().await;
    found.map(drop).map_err(|error| {
        Failure::new(format!(
            "cannot run qemu-img, which writes images: {error}; install the package qemu-utils"
        ))
    })
}

async fn convert(way: &Way, format: ExportFormat, image: &Path, folder: &Path) -> Result<(), Failure> {
    // A fixed VHD of exactly the disk's size is what Azure and others take.
    let options: &[&str] = match format {
        ExportFormat::Raw => &["-O", "raw"],
        ExportFormat::Qcow2 => &["-O", "qcow2"],
        ExportFormat::Vhd => &["-O", "vpc", "-o", "subformat=fixed,force_size=on"],
        ExportFormat::Vmdk => &["-O", "vmdk"],
    };
    let (objects, source) = way.qemu(RECONNECT_SECONDS);
    // When this program is killed, qemu-img goes too, and with it the use of the volume.
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-img", "convert", "-W"])
        .args(objects)
        .args(["--image-opts", &source])
        .args(options)
        .arg(image)
        .kill_on_drop(true)
        // Ctrl-C is for this program, which then ends it.
        .process_group(0)
        .output();
    let output = output.await.map_err(|error| {
        Failure::new(format!("cannot run setpriv: {error}; install the package util-linux"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(if said.contains("No space left") {
        format!("the file system of {} is full; make room or name another place", folder.display())
    } else if said.contains("while reading") {
        format!(
            "the volume could not be read to its end; if the vault was away for more than {} min, export \
             again, else `lifeboat verify` says what is damaged",
            RECONNECT_SECONDS / 60
        )
    } else {
        let first = said.lines().next().unwrap_or("it gave no reason").trim_start_matches("qemu-img: ");
        format!("cannot write the image in {}: qemu-img: {first}", folder.display())
    }))
}
