//! Running other programs: each failure becomes a sentence that names the command.

use std::ffi::OsStr;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::Outcome;

/// Variables that cargo sets for the programs that it runs.
const ABOUT_PACKAGE: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Runs a command in the foreground, in the root of the repository.
pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(program: &str, arguments: I) -> Outcome {
    finish(Command::new(program).args(arguments).current_dir(crate::root()))
}

/// Takes from a command what cargo says to this program about its own package: build scripts that read it would have
/// everything built anew by each that has another.
fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| ABOUT_PACKAGE.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a prepared command in the foreground.
pub fn finish(command: &mut Command) -> Outcome {
    let shown = format!("{command:?}").replace('"', "");
    let status = clean(command).status().map_err(|error| format!("cannot run `{shown}`: {error}"))?;
    outcome_of(&shown, status)
}

/// As [`finish`], for what is to be stopped when this process is: it may not have had the signal, which Ctrl-C
/// sends to both and `kill` to one.
pub fn finish_or_stop(command: &mut Command, stopping: &AtomicBool) -> Outcome {
    let shown = format!("{command:?}").replace('"', "");
    let mut child = clean(command).spawn().map_err(|error| format!("cannot run `{shown}`: {error}"))?;
    let mut told = false;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => return Err(format!("cannot wait for `{shown}`: {error}")),
        }
        if stopping.load(Ordering::Relaxed) && !told {
            // It may have ended just now.
            let _ = output("kill", ["-TERM", &child.id().to_string()]);
            told = true;
        }
        thread::sleep(LOOK_AGAIN);
    };
    outcome_of(&shown, status)
}

fn outcome_of(shown: &str, status: ExitStatus) -> Outcome {
    if status.success() { Ok(()) } else { Err(format!("`{shown}` ended with {status}")) }
}

/// Runs a command and answers what it printed; what it said on standard error goes into the failure.
pub fn output<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
    program: &str,
    arguments: I,
) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let shown = format!("{command:?}").replace('"', "");
    let output = command.output().map_err(|error| format!("cannot run `{shown}`: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!(
            "`{shown}` ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}
