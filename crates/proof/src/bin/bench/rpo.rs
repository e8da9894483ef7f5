//! The age of the newest committed point at every moment of a load.

use std::time::Duration;

use jiff::Timestamp;

use crate::load;
use crate::process::version;
use crate::replication::{self, Point};
use crate::table::{Figure, Table, list, median, quantile};

const GOAL_SECONDS: f64 = 8.0;

pub fn run(quick: bool) -> Table {
    let mut table = Table::new("rpo", quick);
    let (span, warm_up) = if quick { (15, 5) } else { (90, 15) };
    let loaded = load::run(Duration::from_secs(span), Duration::from_secs(warm_up), |_| {});
    // The last points of the load are committed a little later.
    std::thread::sleep(Duration::from_secs(8));
    let points = replication::points(&loaded.site);
    let ages = ages(&points, loaded.begun, loaded.seconds);
    table.note(load::ABOUT);
    table.note(format!(
        "{}; age = now - time of the newest committed point, at every 10 ms of {:.0} s; from the times that the vault keeps of each point.",
        version("fio", "--version"),
        loaded.seconds
    ));
    table.value("written", format!("{:.1} MB/s", loaded.written_per_second / 1e6), "wanted 20 MB/s");
    let age = quantile(&ages, 0.99);
    table.figure(Figure {
        what: "age of the newest point, 99 %".into(),
        ours: format!("{age:.2} s"),
        peer: "-".into(),
        ratio: Some(age / GOAL_SECONDS),
        goal: format!("<= {GOAL_SECONDS:.0} s"),
        reached: age <= GOAL_SECONDS,
    });
    let all = format!("{:.2} / {:.2} s", median(&ages), quantile(&ages, 1.0));
    table.value("age, median / most", all, "-");
    let during: Vec<_> = points.iter().filter(|point| point.time > loaded.begun).collect();
    let spans = |from: fn(&Point) -> Timestamp, to: fn(&Point) -> Timestamp| -> Vec<f64> {
        during.iter().map(|point| to(point).duration_since(from(point)).as_secs_f64()).collect()
    };
    for (what, values) in [
        ("  point to sealed, median / 99 %", spans(|p| p.time, |p| p.sealed)),
        ("  sealed to uploaded", spans(|p| p.sealed, |p| p.uploaded)),
        ("  uploaded to committed", spans(|p| p.uploaded, |p| p.committed)),
    ] {
        table.value(what, format!("{:.3} / {:.3} s", median(&values), quantile(&values, 0.99)), "-");
    }
    let gaps: Vec<_> =
        during.windows(2).map(|pair| pair[1].time.duration_since(pair[0].time).as_secs_f64()).collect();
    table.value(
        "between points, median / most",
        format!("{:.2} / {:.2} s", median(&gaps), quantile(&gaps, 1.0)),
        "-",
    );
    let windows: Vec<_> = during.iter().map(|point| micros(point.window_us) / 1000.0).collect();
    table.value("window, median", format!("{:.3} ms", median(&windows)), "-");
    if quick {
        table.note(format!("Between points, s: {}", list(&gaps, 2)));
    }
    table
}

fn micros(count: u64) -> f64 {
    std::time::Duration::from_micros(count).as_secs_f64() * 1e6
}

/// The ages at every 10 ms.
fn ages(points: &[Point], begun: Timestamp, seconds: f64) -> Vec<f64> {
    let mut ages = Vec::new();
    let mut at = 0.0;
    while at < seconds {
        let mut newest =
            points.iter().rev().filter(|point| point.committed.duration_since(begun).as_secs_f64() <= at);
        if let Some(newest) = newest.next() {
            ages.push(at - newest.time.duration_since(begun).as_secs_f64());
        }
        at += 0.01;
    }
    ages
}
