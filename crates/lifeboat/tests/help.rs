//! What the help says, noun by noun and verb by verb. `UPDATE_GOLDEN=1 cargo test -p lifeboat --test
//! help` writes it anew; the difference is then for a reviewer to read.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

fn help(words: &[String]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    // The width is the default one, not this terminal's.
    let output = command.args(words).arg("--help").env_remove("COLUMNS").output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that a help lists.
fn commands(help: &str) -> Vec<String> {
    let after = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = after
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = listed.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.map(str::to_owned).collect()
}

/// The help of a command and of all below it.
fn tell(words: &mut Vec<String>, all: &mut String) {
    let text = help(words);
    // clap aligns with spaces to the end of a line.
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    writeln!(all, "## lifeboat {}\n\n{}\n", words.join(" "), lines.join("\n")).unwrap();
    for command in commands(&text) {
        words.push(command);
        tell(words, all);
        words.pop();
    }
}

#[test]
fn the_help_is_the_one_that_was_reviewed() {
    let mut all = String::new();
    tell(&mut Vec::new(), &mut all);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &all).unwrap();
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    let difference =
        all.lines().zip(golden.lines().chain(std::iter::repeat(""))).find(|(now, then)| now != then);
    assert!(all == golden, "the help differs from {}, first in: {difference:?}", file.display());
}

#[test]
fn what_cannot_be_understood_ends_with_code_2() {
    for words in [&["server"][..], &["point", "take"], &["volume", "open", ""], &["no-such-noun"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(!output.stderr.is_empty(), "{words:?}");
    }
}
