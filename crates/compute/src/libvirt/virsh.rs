//! Asking libvirt, through its own program `virsh`.
//!
//! The library would have to be linked, and then no part of Lifeboat would start where it is not installed; and
//! its calls block without an end when a host is gone. A program can be missing, and can be ended. It also
//! brings every way to another host that libvirt has, with the certificates and SSH settings it is used with
//! otherwise. What it says is only read where it is made for programs or has not changed for many years.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::settings::ANSWER_LIMIT;
use super::uri::Uri;
use crate::error::ComputeError;

/// The way to one libvirt.
#[derive(Debug)]
pub(crate) struct Virsh {
    program: PathBuf,
    uri: Uri,
}

/// What libvirt said to a question; the error is its refusal, as one line.
pub(crate) type Answer = Result<String, String>;

impl Virsh {
    pub(crate) const fn new(program: PathBuf, uri: Uri) -> Self {
        Self { program, uri }
    }

    pub(crate) const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Asks, and lets the caller judge a refusal.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> Result<Answer, ComputeError> {
        self.ask_in(Path::new("/"), arguments, ANSWER_LIMIT).await
    }

    /// The same with files that are named relative to a directory, and another limit on the wait.
    pub(crate) async fn ask_in(
        &self,
        directory: &Path,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<Answer, ComputeError> {
        let question = question(arguments);
        let mut command = Command::new(&self.program);
        command
            .args(["--quiet", "--connect", &self.uri.connection])
            .args(arguments)
            .env("LC_ALL", "C")
            .current_dir(directory)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = match tokio::time::timeout(limit, command.output()).await {
            Err(_) => {
                let uri = self.uri.shown.clone();
                return Err(ComputeError::HostSilent { uri, question, limit });
            }
            Ok(Err(error)) => return Err(self.not_run(&error)),
            Ok(Ok(output)) => output,
        };
        if output.status.success() {
            return Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let (is_connection, why) = refusal(&String::from_utf8_lossy(&output.stderr));
        tracing::debug!(%question, %why, "libvirt refused");
        if is_connection {
            return Err(ComputeError::Unreachable { uri: self.uri.shown.clone(), why });
        }
        Ok(Err(why))
    }

    /// Asks what is not to be refused.
    pub(crate) async fn must(&self, arguments: &[&str]) -> Result<String, ComputeError> {
        self.ask(arguments).await?.map_err(|why| self.refused(arguments, why))
    }

    /// A refusal as an error.
    pub(crate) fn refused(&self, arguments: &[&str], why: String) -> ComputeError {
        ComputeError::HostRefused { uri: self.uri.shown.clone(), question: question(arguments), why }
    }

    fn not_run(&self, error: &io::Error) -> ComputeError {
        let program = self.program.display().to_string();
        match error.kind() {
            io::ErrorKind::NotFound => ComputeError::ProgramMissing { program, package: "libvirt-clients" },
            _ => ComputeError::Hypervisor { program, why: error.to_string() },
        }
    }
}

/// Whether a refusal says that there is no such domain, pool or volume.
pub(crate) fn is_absent(why: &str) -> bool {
    ["failed to get domain", "failed to get pool", "failed to get vol"].iter().any(|text| why.contains(text))
}

/// Whether a refusal says that a domain has no power.
pub(crate) fn is_off(why: &str) -> bool {
    why.contains("domain is not running")
}

fn question(arguments: &[&str]) -> String {
    arguments.first().copied().unwrap_or_default().to_owned()
}

/// What `virsh` said on its standard error, as one line, and whether it did not get to libvirt at all.
fn refusal(said: &str) -> (bool, String) {
    const NO_CONNECTION: &str = "failed to connect to the hypervisor";
    let lines: Vec<_> = said
        .lines()
        .map(|line| line.trim().trim_start_matches("error: ").trim_end_matches('.'))
        .filter(|line| !line.is_empty())
        .collect();
    let is_connection = lines.contains(&NO_CONNECTION);
    let lines: Vec<_> = lines.into_iter().filter(|line| *line != NO_CONNECTION).collect();
    (is_connection, lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_becomes_one_line() {
        let said = "error: Failed to start domain 'x'\nerror: internal error: no\nmore of it.\n\n";
        assert_eq!(
            refusal(said),
            (false, "Failed to start domain 'x'; internal error: no; more of it".into())
        );
        let said =
            "error: failed to connect to the hypervisor\nerror: Failed to connect socket: No such file\n";
        assert_eq!(refusal(said), (true, "Failed to connect socket: No such file".into()));
    }
}
