//! `lifeboat volume …`.

use lifeboat_api::{OpenVolume, OpenedVolume, Volume, VolumeDisk};
use lifeboat_model::ByteCount;

use crate::arguments::{Output, SiteArguments, VolumeCommand};
use crate::command::export::{Export, export};
use crate::failure::{Answer, Failure};
use crate::reach::{Way, credentials_hint};
use crate::site::{self, Site};
use crate::table::{print_json, print_line, print_table, time};

pub async fn run(arguments: &SiteArguments, command: VolumeCommand) -> Result<Answer, Failure> {
    let (site, vault) = site::connect_to(arguments)?;
    let json = arguments.output == Output::Json;
    match command {
        VolumeCommand::Open { server, point, disk, read_only, lease } => {
            let request = OpenVolume { point: Some(point), disk, read_only, lease };
            let mut opened = vault.open_volume(&server, &request).await?;
            let note = reach(&site, &mut opened.disks);
            if json {
                print_json(&opened)?;
            } else {
                print_opened(&opened);
            }
            match note {
                Some(note) if json => eprintln!("{}", serde_json::json!({"note": note})),
                Some(note) => eprintln!("lifeboat: {note}"),
                None => {}
            }
        }
        VolumeCommand::List => {
            let mut volumes = vault.volumes().await?;
            for volume in &mut volumes {
                reach(&site, &mut volume.disks);
            }
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
            let what = Export { server: &server, point, disk, format, file: &file };
            export(&site, &vault, what).await?;
            if json {
                print_json(&serde_json::json!({"file": file}))?;
            } else {
                print_line(&format!("Wrote {}.", file.display()));
            }
        }
    }
    Ok(Answer::Done)
}

/// Makes the first address of each disk the one that works on this machine. Answers what there is
/// to know about it.
fn reach(site: &Site, disks: &mut [VolumeDisk]) -> Option<String> {
    let mut note = None;
    for disk in disks {
        match Way::to(site, disk) {
            Ok(way) => {
                disk.nbd_uri = way.uri(disk);
                if let Way::Tls { credentials, .. } = &way {
                    note = Some(credentials_hint(credentials));
                }
            }
            Err(failure) => note = Some(failure.sentence),
        }
    }
    note
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
