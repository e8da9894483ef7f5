//! What a bench prints: where and when, what was compared, and a row for each figure.

use std::fs;

use jiff::Timestamp;

/// A table under way.
pub struct Table {
    name: &'static str,
    begun: Timestamp,
    load_at_begin: String,
    notes: Vec<String>,
    rows: Vec<[String; 6]>,
}

/// A figure that has to reach something.
pub struct Figure {
    pub what: String,
    pub ours: String,
    pub peer: String,
    pub ratio: Option<f64>,
    pub goal: String,
    pub reached: bool,
}

impl Table {
    /// Begins a bench.
    pub fn new(name: &'static str, quick: bool) -> Self {
        let mut notes = Vec::new();
        if quick {
            notes.push("--quick: small sizes, one run each; the figures mean little.".to_owned());
        }
        Self { name, begun: Timestamp::now(), load_at_begin: load_average(), notes, rows: Vec::new() }
    }

    /// Says what was compared and how.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds a figure with a goal.
    pub fn figure(&mut self, figure: Figure) {
        let Figure { what, ours, peer, ratio, goal, reached } = figure;
        let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let verdict = if reached { "reached" } else { "NOT REACHED" };
        self.rows.push([what, ours, peer, ratio, goal, verdict.to_owned()]);
    }

    /// Adds a value that no goal asks for.
    pub fn value(&mut self, what: impl Into<String>, ours: impl Into<String>, peer: impl Into<String>) {
        self.rows.push([what.into(), ours.into(), peer.into(), "-".into(), "-".into(), "-".into()]);
    }

    /// Prints it as Markdown.
    pub fn print(&self) {
        println!("\n## {}\n", self.name);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        println!(
            "{} to {} UTC; {cores} cores; Linux {}; load average {} before, {} after.",
            self.begun.strftime("%Y-%m-%d %H:%M:%S"),
            Timestamp::now().strftime("%H:%M:%S"),
            kernel.trim(),
            self.load_at_begin,
            load_average()
        );
        self.notes.iter().for_each(|note| println!("{note}"));
        let head = ["what", "Lifeboat", "peer", "ratio", "goal", "verdict"].map(str::to_owned);
        let width = |column: usize| {
            self.rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..head.len()).map(width).collect();
        let line = |cells: &[String; 6]| {
            let padded: Vec<_> =
                cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            println!("| {} |", padded.join(" | "));
        };
        println!();
        line(&head);
        let dashes: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
        println!("| {} |", dashes.join(" | "));
        self.rows.iter().for_each(line);
    }
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The middle of `values`, or the upper of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that `part` of `values` do not exceed.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
    let place = (sorted.len() as f64 * part) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// All values of several runs, for a note.
pub fn list(values: &[f64], digits: usize) -> String {
    values.iter().map(|value| format!("{value:.digits$}")).collect::<Vec<_>>().join(" ")
}

/// Bytes in MiB.
pub fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}
