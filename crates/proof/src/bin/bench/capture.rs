//! PostgreSQL under pgbench, with and without protection, in turn.

use jiff::Timestamp;
use lifeboat_proof::{LoopDisk, Mount, PostgreSql, Site, reachable_dir, run as run_command};

use crate::process::version;
use crate::replication;
use crate::table::{Figure, Table, list, median};

const MIB: u64 = 1 << 20;

/// How a run of pgbench is protected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protection {
    /// Nothing of Lifeboat runs, nothing is tracked.
    Off,
    /// Process server and vault get what the others leave of the processors.
    Apart,
    /// All roles compete for the processors.
    Beside,
}

pub fn run(quick: bool) -> Table {
    let mut table = Table::new("capture", quick);
    let (rounds, seconds, scale) = if quick { (1, 6, 5) } else { (5, 20, 30) };
    let disks = [LoopDisk::new(1024 * MIB), LoopDisk::new(1024 * MIB)];
    for disk in &disks {
        run_command("mkfs.ext4", ["-q", disk.device.to_str().unwrap()]);
    }
    let [data, wal] = disks.each_ref().map(|disk| Mount::new(&disk.device, "defaults"));
    let sockets = reachable_dir();
    let database = PostgreSql::create(data.path(), wal.path(), sockets.path(), 55_801);
    database.pgbench_init(scale);
    let mut site = Site::start(&[&disks[0], &disks[1]], "5s");
    replication::await_point_after(&site, Timestamp::UNIX_EPOCH);
    site.stop();
    site.untrack();
    transactions_per_second(&database, seconds.min(10));

    let mut runs = Runs::default();
    let orders = [
        [Protection::Off, Protection::Apart, Protection::Beside],
        [Protection::Beside, Protection::Apart, Protection::Off],
    ];
    for round in 0..rounds {
        for protection in orders[round % 2] {
            runs.measure(&mut site, &database, protection, seconds);
        }
    }
    resume(&mut site);
    let points: Vec<_> =
        replication::points(&site).into_iter().filter(|point| runs.is_within(point.time)).collect();

    table.note(format!(
        "{}: pgbench -c 4 -j 2 -T {seconds}, scale {scale}, data and log on two loop disks with ext4; {rounds} rounds in alternating order; medians.",
        version("/usr/lib/postgresql/15/bin/postgres", "--version")
    ));
    table.note("\"apart\": process server and vault at idle priority (chrt --idle), for machines of their own; \"beside\": all roles compete with PostgreSQL for the processors.");
    transaction_rows(&mut table, &runs);
    point_rows(&mut table, &points);
    table
}

/// What pgbench said, and when it ran protected.
#[derive(Default)]
struct Runs {
    /// Transactions a second, by [`Protection`].
    per_second: [Vec<f64>; 3],
    protected: Vec<(Timestamp, Timestamp)>,
}

impl Runs {
    fn measure(&mut self, site: &mut Site, database: &PostgreSql, protection: Protection, seconds: u32) {
        if protection != Protection::Off {
            resume(site);
        }
        if protection == Protection::Apart {
            replication::yield_processors(site);
        }
        database.sql("checkpoint");
        let begun = Timestamp::now();
        self.per_second[protection as usize].push(transactions_per_second(database, seconds));
        if protection != Protection::Off {
            self.protected.push((begun, Timestamp::now()));
            site.stop();
            site.untrack();
        }
    }

    fn is_within(&self, time: Timestamp) -> bool {
        self.protected.iter().any(|(from, to)| *from <= time && time <= *to)
    }
}

/// Starts the site again and waits for its first point.
fn resume(site: &mut Site) {
    let resumed = Timestamp::now();
    site.resume();
    replication::await_point_after(site, resumed);
}

fn transaction_rows(table: &mut Table, runs: &Runs) {
    let [off, apart, beside] = &runs.per_second;
    for (what, with) in
        [("transactions, other roles apart", apart), ("transactions, other roles beside", beside)]
    {
        let ratio = median(with) / median(off);
        table.figure(Figure {
            what: what.into(),
            ours: format!("{:.0} /s", median(with)),
            peer: format!("unprotected {:.0} /s", median(off)),
            ratio: Some(ratio),
            goal: ">= 0.97".into(),
            reached: ratio >= 0.97,
        });
    }
    table.note(format!(
        "Runs, /s: off {}; apart {}; beside {}.",
        list(off, 0),
        list(apart, 0),
        list(beside, 0)
    ));
}

fn point_rows(table: &mut Table, points: &[replication::Point]) {
    let windows: Vec<_> = points
        .iter()
        .map(|point| std::time::Duration::from_micros(point.window_us).as_secs_f64() * 1e3)
        .collect();
    let window = median(&windows);
    table.figure(Figure {
        what: format!("window from T to check, median of {} points", points.len()),
        ours: format!("{window:.3} ms"),
        peer: "-".into(),
        ratio: Some(window),
        goal: "<= 1 ms".into(),
        reached: window <= 1.0,
    });
    let frozen = points.iter().filter(|point| point.frozen_us > 0).count();
    table.figure(Figure {
        what: "points that stopped the writer".into(),
        ours: format!("{frozen} of {}", points.len()),
        peer: "-".into(),
        ratio: None,
        goal: "0".into(),
        reached: frozen == 0 && !points.is_empty(),
    });
    let tries = points.iter().map(|point| point.attempts).max().unwrap_or(0);
    table.value("attempts for a point, most", tries.to_string(), "-");
}

fn transactions_per_second(database: &PostgreSql, seconds: u32) -> f64 {
    let load = database.pgbench(&["-c", "4", "-j", "2", "-T", &seconds.to_string()]);
    let output = load.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("tps = "));
    let number = line.and_then(|line| line.split(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("pgbench said: {text}{}", String::from_utf8_lossy(&output.stderr)))
}
