//! Tables and JSON on standard output.

use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;

/// Prints `value` as the API has it, indented.
pub fn print_json(value: &impl Serialize) -> Result<(), crate::failure::Failure> {
    let text = serde_json::to_string_pretty(value)?;
    print_line(&text);
    Ok(())
}

/// Prints one line; a reader that has gone away (`| head`) is no error.
pub fn print_line(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Prints rows under their headings, each column as wide as its widest cell.
pub fn print_table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        print_line(padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(headings);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
}

/// A time for people: to the second, in UTC.
pub fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Milliseconds as a person says them: `850 ms`, `4.2 s`, `3 min 20 s`, `5 h 10 min`.
pub fn milliseconds(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        3_600_000..172_800_000 => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
        _ => format!("{} d {} h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_as_a_person_says_them() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (4_250, "4.2 s"),
            (200_000, "3 min 20 s"),
            (18_600_000, "5 h 10 min"),
            (180_000_000, "2 d 2 h"),
        ] {
            assert_eq!(milliseconds(ms), text);
        }
    }
}
