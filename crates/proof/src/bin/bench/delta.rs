//! A small change: the time and the bytes until it is safe.

use std::time::Instant;

use jiff::Timestamp;
use lifeboat_proof::{LoopDisk, Site, scratch};

use crate::table::{Figure, Table, list, median, mib};
use crate::{image, initial, replication, tool};

pub fn run(quick: bool) -> Table {
    let mut table = Table::new("delta", quick);
    let (bytes, rounds) = if quick { (256 << 20, 1) } else { (4 << 30, 3) };
    let dir = tempfile::Builder::new().prefix("lifeboat-bench-").tempdir_in(scratch()).unwrap();
    let image = dir.path().join("image");
    image::make(&image, bytes);
    let disk = LoopDisk::cached(&image);
    // Nothing is sent before the point that is asked for.
    let site = Site::start(&[&disk], "1h");
    replication::await_point_after(&site, Timestamp::UNIX_EPOCH);
    let mut tools = tool::installed(dir.path());
    for tool in &mut tools {
        tool.back_up(&image);
    }

    let (mut ours, mut ours_bytes, mut packed, mut pipe) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut peers = vec![(Vec::new(), Vec::new()); tools.len()];
    let mut changed = 0;
    for round in 0..rounds {
        let written = image::change(&disk.device, bytes, 1000 + round);
        initial::warm(&image);
        changed = written.len();
        let begun = Instant::now();
        site.take_point("crash");
        ours.push(begun.elapsed().as_secs_f64());
        #[allow(clippy::cast_precision_loss, reason = "a size for people")]
        ours_bytes.push(replication::points(&site).last().unwrap().bytes as f64);
        packed.push(tool::zstd_bytes(&written, dir.path()));
        pipe.push(tool::pipeline(&image, dir.path()).0.seconds);
        for (tool, (seconds, added)) in tools.iter_mut().zip(&mut peers) {
            let before = tool.stored_bytes();
            seconds.push(tool.back_up(&image).seconds);
            added.push(tool.stored_bytes() - before);
        }
    }
    table.note(format!(
        "Image of {} MiB; 1 % of its 64 KiB blocks overwritten ({} MiB, half random, half text), in the page cache for all; medians of {rounds}.",
        bytes >> 20,
        changed >> 20
    ));
    table.note(
        "Lifeboat: `lifeboat point take --wait`, from its start to its end, when the point is committed.",
    );
    tools.iter().for_each(|tool| table.note(format!("{}: {}", tool.name, tool.about)));
    tool::missing()
        .iter()
        .for_each(|name| table.note(format!("{name} is not installed and was not measured.")));
    let time = median(&ours);
    for (tool, (seconds, added)) in tools.iter().zip(&peers) {
        let ratio = median(seconds) / time;
        table.figure(Figure {
            what: format!("times faster than {}", tool.name),
            ours: format!("{time:.2} s"),
            peer: format!("{} {:.2} s", tool.name, median(seconds)),
            ratio: Some(ratio),
            goal: ">= 20".into(),
            reached: ratio >= 20.0,
        });
        table.value(
            "  bytes added",
            mib(median(&ours_bytes)),
            format!("{} {}", tool.name, mib(median(added))),
        );
    }
    let ratio = median(&pipe) / time;
    table.figure(Figure {
        what: "times faster than the pipeline over the disk".into(),
        ours: format!("{time:.2} s"),
        peer: format!("{} {:.2} s", tool::PIPELINE, median(&pipe)),
        ratio: Some(ratio),
        goal: ">= 20".into(),
        reached: ratio >= 20.0,
    });
    let ratio = median(&ours_bytes) / median(&packed);
    table.figure(Figure {
        what: "bytes stored".into(),
        ours: mib(median(&ours_bytes)),
        peer: format!("zstd -1 of the changed data {}", mib(median(&packed))),
        ratio: Some(ratio),
        goal: "<= 1.10".into(),
        reached: ratio <= 1.1,
    });
    table.note(format!("Runs, s: Lifeboat {}.", list(&ours, 2)));
    table
}
