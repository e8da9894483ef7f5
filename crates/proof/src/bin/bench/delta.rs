//! A small change: the time and the bytes until it is safe.

use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use lifeboat_proof::{LoopDisk, Site, scratch};

use crate::table::{Figure, Table, list, median, mib};
use crate::tool::{self, BackupTool};
use crate::{image, initial, replication};

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

    let mut runs = Runs::new(tools.len());
    for round in 0..rounds {
        let written = image::change(&disk.device, bytes, 1000 + round);
        initial::warm(&image);
        runs.changed_bytes = written.len();
        runs.ours(&site, &written, dir.path());
        runs.peers(&mut tools, &image, dir.path());
    }
    table.note(format!(
        "Image of {} MiB; 1 % of its 64 KiB blocks overwritten ({} MiB, half random, half text), in the page cache for all; medians of {rounds}.",
        bytes >> 20,
        runs.changed_bytes >> 20
    ));
    table.note(
        "Lifeboat: `lifeboat point take --wait`, from its start to its end, when the point is committed.",
    );
    tools.iter().for_each(|tool| table.note(format!("{}: {}", tool.name, tool.about)));
    tool::missing()
        .iter()
        .for_each(|name| table.note(format!("{name} is not installed and was not measured.")));
    rows(&mut table, &tools, &runs);
    table
}

/// What was measured, one entry a round.
#[derive(Default)]
struct Runs {
    seconds: Vec<f64>,
    stored: Vec<f64>,
    /// The changed data as one file, compressed.
    packed: Vec<f64>,
    pipeline: Vec<f64>,
    /// Seconds and bytes added of each tool.
    tools: Vec<(Vec<f64>, Vec<f64>)>,
    changed_bytes: usize,
}

impl Runs {
    fn new(tools: usize) -> Self {
        Self { tools: vec![(Vec::new(), Vec::new()); tools], ..Self::default() }
    }

    fn ours(&mut self, site: &Site, written: &[u8], scratch: &Path) {
        let begun = Instant::now();
        site.take_point("crash");
        self.seconds.push(begun.elapsed().as_secs_f64());
        #[allow(clippy::cast_precision_loss, reason = "a size for people")]
        self.stored.push(replication::points(site).last().unwrap().bytes as f64);
        self.packed.push(tool::zstd_bytes(written, scratch));
    }

    fn peers(&mut self, tools: &mut [BackupTool], image: &Path, scratch: &Path) {
        self.pipeline.push(tool::pipeline(image, scratch).0.seconds);
        for (tool, (seconds, added)) in tools.iter_mut().zip(&mut self.tools) {
            let before = tool.stored_bytes();
            seconds.push(tool.back_up(image).seconds);
            added.push(tool.stored_bytes() - before);
        }
    }
}

fn rows(table: &mut Table, tools: &[BackupTool], runs: &Runs) {
    let time = median(&runs.seconds);
    for (tool, (seconds, added)) in tools.iter().zip(&runs.tools) {
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
            mib(median(&runs.stored)),
            format!("{} {}", tool.name, mib(median(added))),
        );
    }
    let ratio = median(&runs.pipeline) / time;
    table.figure(Figure {
        what: "times faster than the pipeline over the disk".into(),
        ours: format!("{time:.2} s"),
        peer: format!("{} {:.2} s", tool::PIPELINE, median(&runs.pipeline)),
        ratio: Some(ratio),
        goal: ">= 20".into(),
        reached: ratio >= 20.0,
    });
    let ratio = median(&runs.stored) / median(&runs.packed);
    table.figure(Figure {
        what: "bytes stored".into(),
        ours: mib(median(&runs.stored)),
        peer: format!("zstd -1 of the changed data {}", mib(median(&runs.packed))),
        ratio: Some(ratio),
        goal: "<= 1.10".into(),
        reached: ratio <= 1.1,
    });
    table.note(format!("Runs, s: Lifeboat {}.", list(&runs.seconds, 2)));
}
