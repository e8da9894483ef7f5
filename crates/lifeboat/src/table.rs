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
