//! `lifeboat volume …`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lifeboat_api::{ExportFormat, OpenVolume, OpenedVolume, Volume};
use lifeboat_client::Vault;
use lifeboat_model::{ByteCount, DiskNumber};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::{Output, SiteArguments, VolumeCommand};
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line, print_table, time};

pub async fn run(arguments: &SiteArguments, command: VolumeCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let json = arguments.output == Output::Json;
    match command {
        VolumeCommand::Open { server, point, disk, read_only } => {
            let opened =
                vault.open_volume(&server, &OpenVolume { point: Some(point), disk, read_only }).await?;
            if json { print_json(&opened)? } else { print_opened(&opened) }
        }
        VolumeCommand::List => {
            let volumes = vault.volumes().await?;
            if json { print_json(&volumes)? } else { print_volumes(&volumes) }
        }
        VolumeCommand::Close { volume, force } => {
            vault.close_volume(&volume, force).await?;
            if json {
                print_json(&serde_json::json!({"closed": volume}))?;
            } else {
                print_line(&format!("Volume {volume} is closed."));
            }
        }
        VolumeCommand::Export { server, point, disk, format, file } => {
            export(&vault, &server, point, disk, format, &file).await?;
            if json {
                print_json(&serde_json::json!({"file": file}))?;
            } else {
                print_line(&format!("Wrote {}.", file.display()));
            }
        }
    }
    Ok(Answer::Done)
}

fn print_opened(opened: &OpenedVolume) {
    print_line(&format!("Volume {}", opened.volume));
    for disk in &opened.disks {
        print_line(&format!("Disk {}  {}  {}", disk.disk, ByteCount(disk.bytes), disk.nbd_uri));
    }
}

fn print_volumes(volumes: &[Volume]) {
    if volumes.is_empty() {
        print_line("No volume is open.");
        return;
    }
    let rows: Vec<_> = volumes
        .iter()
        .map(|volume| {
            let disks: Vec<_> = volume.disks.iter().map(|disk| disk.nbd_uri.clone()).collect();
            [
                volume.id.to_string(),
                volume.server_name.clone(),
                format!("{} ({})", time(volume.point_time), volume.point),
                if volume.read_only { "no".to_owned() } else { ByteCount(volume.overlay_bytes).to_string() },
                volume.trouble.clone().unwrap_or_else(|| disks.join(" ")),
            ]
        })
        .collect();
    print_table(["VOLUME", "SERVER", "POINT (UTC)", "WRITTEN", "DISKS"], &rows);
}

/// Copies one disk of a point to an image: opens it read-only, lets `qemu-img` write the format, closes it.
async fn export(
    vault: &Vault,
    server: &str,
    point: String,
    disk: DiskNumber,
    format: ExportFormat,
    file: &Path,
) -> Result<(), Failure> {
    let file = std::path::absolute(file)?;
    let exists = || Failure::new(format!("{} exists; name a file that does not", file.display()));
    if file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    // Written in a directory of its own beside the file and then renamed, so that a name never
    // stands for half an image, and two exports are not in each other's way.
    let folder = file.parent().unwrap_or(Path::new("/"));
    let place = tempfile::Builder::new().prefix(".lifeboat-export-").tempdir_in(folder).map_err(|error| {
        Failure::new(format!("cannot write in {}: {error}; name another place", folder.display()))
    })?;
    let partial = place.path().join("image");
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let request = OpenVolume { point: Some(point), disk: Some(disk), read_only: true };
    let opened = vault.open_volume(server, &request).await?;
    let convert = async {
        match opened.disks.first() {
            Some(disk) => convert(&disk.nbd_uri, format, &partial, folder).await,
            None => Err(Failure::new(format!("the vault opened no disk {disk} of {server}"))),
        }
    };
    let interrupted = || Err(Failure::new(format!("interrupted; {} was not written", file.display())));
    let outcome = tokio::select! {
        outcome = convert => outcome,
        _ = interrupt.recv() => interrupted(),
        _ = terminate.recv() => interrupted(),
    };
    // The volume goes whatever came of the copy; a failure of the copy is the one worth telling.
    let closed = vault.close_volume(&opened.volume.to_string(), true).await;
    outcome?;
    // Whoever may read the image may read all that is on the disk.
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o600))?;
    renameat_with(CWD, &partial, CWD, &file, RenameFlags::NOREPLACE).map_err(|error| match error {
        rustix::io::Errno::EXIST => exists(),
        error => Failure::new(format!("cannot name the image {}: {error}", file.display())),
    })?;
    Ok(closed?)
}

async fn convert(uri: &str, format: ExportFormat, image: &Path, folder: &Path) -> Result<(), Failure> {
    // A fixed VHD of exactly the disk's size is what Azure and others take.
    let options: &[&str] = match format {
        ExportFormat::Raw => &["-O", "raw"],
        ExportFormat::Qcow2 => &["-O", "qcow2"],
        ExportFormat::Vhd => &["-O", "vpc", "-o", "subformat=fixed,force_size=on"],
        ExportFormat::Vmdk => &["-O", "vmdk"],
    };
    let output = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-W"])
        .args(options)
        .arg(uri)
        .arg(image)
        .kill_on_drop(true)
        // Ctrl-C is for this program, which then ends it.
        .process_group(0)
        .output();
    let output = output.await.map_err(|error| {
        Failure::new(format!(
            "cannot run qemu-img, which writes images: {error}; install the package qemu-utils"
        ))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(if said.contains("No space left") {
        format!("the file system of {} is full; make room or name another place", folder.display())
    } else if said.contains("while reading") {
        "the volume could not be read to its end; if the vault was restarted meanwhile, export again, \
         else `lifeboat verify` says what is damaged"
            .to_owned()
    } else {
        let first = said.lines().next().unwrap_or("it gave no reason").trim_start_matches("qemu-img: ");
        format!("cannot write the image in {}: qemu-img: {first}", folder.display())
    }))
}
