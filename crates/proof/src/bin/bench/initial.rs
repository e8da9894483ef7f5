//! The first full copy of a disk, beside a pipeline of tools and beside backup programs.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_proof::{LoopDisk, Site, scratch};

use crate::process::Took;
use crate::table::{Figure, Table, list, median, mib};
use crate::{image, replication, tool};

pub fn run(quick: bool) -> Table {
    let mut table = Table::new("initial", quick);
    let (bytes, rounds) = if quick { (256 << 20, 1) } else { (4 << 30, 3) };
    let dir = tempfile::Builder::new().prefix("lifeboat-bench-").tempdir_in(scratch()).unwrap();
    let image = dir.path().join("image");
    image::make(&image, bytes);
    warm(&image);

    let (mut ours, mut pipe) = (Vec::new(), Vec::new());
    let (mut ours_stored, mut pipe_stored) = (0.0, 0.0);
    let mut peers: Vec<(String, String, Vec<Took>, f64)> = Vec::new();
    for _ in 0..rounds {
        let (took, stored) = tool::pipeline(&image, dir.path());
        pipe.push(took);
        pipe_stored = stored;
        let (took, stored) = copy(&image);
        ours.push(took);
        ours_stored = stored;
        for mut tool in tool::installed(dir.path()) {
            let took = tool.back_up(&image);
            let stored = tool.stored_bytes();
            match peers.iter_mut().find(|(name, ..)| name == tool.name) {
                Some((_, _, runs, _)) => runs.push(took),
                None => peers.push((tool.name.to_owned(), tool.about.clone(), vec![took], stored)),
            }
        }
    }
    table.note(format!(
        "Image of {} MiB: a quarter zero, half files of /usr, a quarter random, in the page cache for all; medians of {rounds}.",
        bytes >> 20
    ));
    table.note("Lifeboat: from the start of the agent's process to the first committed point (synced in spool and vault, TLS twice).");
    table.note(format!("Pipeline: {}, not synced.", tool::PIPELINE));
    peers
        .iter()
        .for_each(|(name, about, ..)| table.note(format!("{name}: {about}, repository on the same disk.")));
    tool::missing()
        .iter()
        .for_each(|name| table.note(format!("{name} is not installed and was not measured.")));

    rows(&mut table, &ours, &pipe, &peers);
    table.value("stored, pipeline", mib(ours_stored), mib(pipe_stored));
    for (name, _, _, stored) in &peers {
        if name == "restic" {
            table.figure(Figure {
                what: "stored bytes".into(),
                ours: mib(ours_stored),
                peer: format!("restic {}", mib(*stored)),
                ratio: Some(ours_stored / stored),
                goal: "<= 1.00".into(),
                reached: ours_stored <= *stored,
            });
        } else {
            table.value("stored bytes", mib(ours_stored), format!("{name} {}", mib(*stored)));
        }
    }
    table
}

fn rows(table: &mut Table, ours: &[Took], pipe: &[Took], peers: &[(String, String, Vec<Took>, f64)]) {
    let wall = |runs: &[Took]| -> Vec<f64> { runs.iter().map(|took| took.seconds).collect() };
    let cpu = |runs: &[Took]| median(&runs.iter().map(|took| took.cpu_seconds).collect::<Vec<_>>());
    let shown = |runs: &[Took]| format!("{:.1} s (cpu {:.1} s)", median(&wall(runs)), cpu(runs));
    let ratio = median(&wall(pipe)) / median(&wall(ours));
    table.figure(Figure {
        what: "speed, against the pipeline".into(),
        ours: shown(ours),
        peer: format!("pipeline {}", shown(pipe)),
        ratio: Some(ratio),
        goal: ">= 0.80".into(),
        reached: ratio >= 0.8,
    });
    table.value("  per processor second", format!("{:.2} of the pipeline's", cpu(pipe) / cpu(ours)), "-");
    for (name, _, runs, _) in peers {
        let ratio = median(&wall(runs)) / median(&wall(ours));
        table.figure(Figure {
            what: format!("speed, against {name}"),
            ours: shown(ours),
            peer: format!("{name} {}", shown(runs)),
            ratio: Some(ratio),
            goal: "> 1".into(),
            reached: ratio > 1.0,
        });
    }
    table.note(format!("Runs, s: Lifeboat {}; pipeline {}.", list(&wall(ours), 1), list(&wall(pipe), 1)));
}

/// Reads the image once, so that all find it in the page cache.
pub fn warm(image: &Path) {
    let mut file = std::fs::File::open(image).unwrap();
    std::io::copy(&mut file, &mut std::io::sink()).unwrap();
}

/// Copies the image through a new site. Answers the time and the stored bytes.
fn copy(image: &Path) -> (Took, f64) {
    let disk = LoopDisk::cached(image);
    let site = Site::start(&[&disk], "5s");
    let point = replication::await_point_after(&site, Timestamp::UNIX_EPOCH);
    let seconds = replication::since_start_of(site.role("agent").unwrap(), point.committed);
    let cpu_seconds = replication::cpu_of_roles(&site);
    std::thread::sleep(Duration::from_millis(100));
    #[allow(clippy::cast_precision_loss, reason = "a size for people")]
    let stored = point.bytes as f64;
    (Took { seconds, cpu_seconds }, stored)
}
