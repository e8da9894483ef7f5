//! What the agent takes of its server: processor time and memory.

use std::time::{Duration, Instant};

use lifeboat_proof::LoopDisk;

use crate::load;
use crate::process::{self, Resident};
use crate::table::{Figure, Table, mib};

const MIB: f64 = 1_048_576.0;

pub fn run(quick: bool) -> Table {
    let mut table = Table::new("agent", quick);
    let (span, warm_up) = if quick { (15, 5) } else { (60, 15) };
    let mut most = Resident::default();
    let mut first = None;
    let mut last = (Instant::now(), 0.0);
    let loaded = load::run(Duration::from_secs(span), Duration::from_secs(warm_up), |site| {
        let Some(pid) = site.role("agent") else { return };
        let now = process::resident(pid);
        most = Resident { own: most.own.max(now.own), bitmaps: most.bitmaps.max(now.bitmaps) };
        last = (Instant::now(), process::cpu_seconds(pid));
        first.get_or_insert(last);
    });
    let first = first.unwrap();
    let core = (last.1 - first.1) / last.0.duration_since(first.0).as_secs_f64() * 100.0;
    let peak = loaded.site.role("agent").map_or(0, process::resident_peak);
    #[allow(clippy::cast_precision_loss, reason = "sizes for people")]
    let (own, bitmaps, peak, disks) = (
        most.own as f64,
        most.bitmaps as f64,
        peak as f64,
        loaded.disks.iter().map(LoopDisk::bytes).sum::<u64>() as f64,
    );
    table.note(load::ABOUT);
    table.note("Processor time from /proc/PID/stat, memory from /proc/PID/smaps, looked at twice a second.");
    table.value("written", format!("{:.1} MB/s", loaded.written_per_second / 1e6), "wanted 20 MB/s");
    table.figure(Figure {
        what: "processor".into(),
        ours: format!("{core:.1} % of a core"),
        peer: "-".into(),
        ratio: Some(core / 15.0),
        goal: "<= 15 %".into(),
        reached: core <= 15.0,
    });
    let allowed = 64.0 * MIB + 128.0 * MIB * disks / (1u64 << 40) as f64;
    table.figure(Figure {
        what: "memory in all, most".into(),
        ours: mib(own + bitmaps),
        peer: "-".into(),
        ratio: Some((own + bitmaps) / allowed),
        goal: format!("<= {} (64 MiB + 128 MiB a TiB)", mib(allowed)),
        reached: own + bitmaps <= allowed,
    });
    table.value("  without the mapped bitmaps, most", mib(own), "-");
    table.value("  the mapped bitmaps, most", mib(bitmaps), "-");
    table.value("  peak since its start (with the initial copy)", mib(peak), "-");
    table
}
