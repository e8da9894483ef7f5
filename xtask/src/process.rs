//! Running other programs: each failure becomes a sentence that names the command.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::Outcome;

/// Runs a command in the foreground, in the root of the repository.
pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(program: &str, arguments: I) -> Outcome {
    finish(Command::new(program).args(arguments).current_dir(crate::root()))
}

/// Runs a prepared command in the foreground.
pub fn finish(command: &mut Command) -> Outcome {
    let shown = format!("{command:?}").replace('"', "");
    let status = command.status().map_err(|error| format!("cannot run `{shown}`: {error}"))?;
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
