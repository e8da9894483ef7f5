//! The command line.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};
use lifeboat_model::ByteCount;
use lifeboat_tracker::TrackerSet;
use lifeboat_wire::agent::{AgentReport, CaptureMode};
use serde::Serialize;
use serde_json::json;

use crate::quiet::{Quiet, QuietLog};
use crate::settings::Settings;
use crate::{check, fit, recovery_copy, run, status};

const CONFIG: &str = "/etc/lifeboat/agent.toml";

/// Follows the disks of this server and replicates them to a process server.
#[derive(Debug, Parser)]
#[command(name = "lifeboat-agent", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "Exit codes: 0 done, 1 a negative answer, 2 an error (one sentence on standard error).\n\
                          The log goes to standard error; RUST_LOG=debug says more.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until SIGTERM. SIGHUP reads the list of disks and the certificate again.
    Run(Config),
    /// Say whether this kernel and these disks can be protected, and what to do if not.
    Check {
        /// A disk to check; all disks of this server when none is named.
        #[arg(long = "disk", value_name = "PATH")]
        disks: Vec<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Ask the running agent what it does.
    Status {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        form: Form,
    },
    /// End the tracking of all disks and remove its pins; for a server that is no longer protected.
    Untrack {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        form: Form,
    },
    /// In a started copy of this server, fit it to its machine: names of network cards, fixed addresses.
    ///
    /// The machine's firmware orders what is changed. On an original nothing is done.
    Fit {
        /// Where the system's files are.
        #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
        root: PathBuf,
    },
    /// Print the version.
    Version,
}

#[derive(Debug, clap::Args)]
struct Config {
    /// The settings.
    #[arg(long = "config", value_name = "FILE", default_value = CONFIG, env = "LIFEBOAT_AGENT_CONFIG")]
    path: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Form {
    /// How to print the answer.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Reads the command line, does what it says, and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = match &arguments.command {
        Command::Check { form, .. } | Command::Status { form, .. } | Command::Untrack { form, .. } => {
            form.output
        }
        Command::Run(_) | Command::Fit { .. } | Command::Version => Output::Text,
    };
    let outcome = match arguments.command {
        Command::Run(config) => {
            let quiet = Quiet::new();
            start_log(&quiet);
            run::run(&config.path, &quiet).map(|()| true).map_err(|error| error.to_string())
        }
        Command::Check { disks, .. } => print_check(&disks, output),
        Command::Status { config, .. } => print_status(&config.path, output),
        Command::Untrack { config, .. } => untrack(&config.path, output),
        Command::Fit { root } => {
            start_log(&Quiet::new());
            fit::fit(&root).map(|()| true)
        }
        Command::Version => {
            println!("lifeboat-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(true)
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(sentence) => {
            let sentence = format!("{}.", sentence.trim_end_matches('.'));
            match output {
                Output::Text => eprintln!("lifeboat-agent: {sentence}"),
                Output::Json => eprintln!("{}", json!({"error": {"code": "failed", "message": sentence}})),
            }
            ExitCode::from(2)
        }
    }
}

fn start_log(quiet: &Arc<Quiet>) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(QuietLog(Arc::clone(quiet)));
    // Systemd adds the time itself.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.with_ansi(false).without_time().init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

fn print_json(answer: &impl Serialize) -> Result<(), String> {
    println!("{}", serde_json::to_string_pretty(answer).map_err(|error| error.to_string())?);
    Ok(())
}

fn print_check(disks: &[PathBuf], output: Output) -> Result<bool, String> {
    let (findings, good) = check::check(disks);
    if output == Output::Json {
        print_json(&json!({"can_be_protected": good, "findings": findings}))?;
        return Ok(good);
    }
    for finding in findings {
        println!("{} {}", if finding.good { "yes:" } else { "no: " }, finding.sentence);
    }
    Ok(good)
}

fn print_status(config: &Path, output: Output) -> Result<bool, String> {
    let settings = Settings::load(config).map_err(|error| error.to_string())?;
    let report = match status::ask(&settings.status_socket()) {
        Ok(report) => report,
        Err(error) => {
            let sentence = match recovery_copy::sentence() {
                Some(sentence) => format!("Nothing is protected here: {sentence}."),
                None => {
                    format!("The agent does not run ({error}). Start it: systemctl start lifeboat-agent")
                }
            };
            match output {
                Output::Json => print_json(&json!({"running": false, "message": sentence}))?,
                Output::Text => println!("{sentence}"),
            }
            return Ok(false);
        }
    };
    match output {
        Output::Json => print_json(&Running { running: true, report: &report })?,
        Output::Text => print!("{}", status_text(&report)),
    }
    Ok(!matches!(report.capture, CaptureMode::Stalled { .. }))
}

/// The status of an agent that runs.
#[derive(Serialize)]
struct Running<'a> {
    running: bool,
    #[serde(flatten)]
    report: &'a AgentReport,
}

fn status_text(report: &AgentReport) -> String {
    let capture = match &report.capture {
        CaptureMode::Starting => "starting".to_owned(),
        CaptureMode::InitialCopy => "first copy; no point exists before it ends".to_owned(),
        CaptureMode::Resync { reason } => format!("comparing disk and copy: {reason}"),
        CaptureMode::Optimistic => "points without a pause".to_owned(),
        CaptureMode::Quiesced { reason } => format!("points in a short freeze: {reason}"),
        CaptureMode::Stalled { reason } => format!("NO POINTS: {reason}"),
    };
    let newest = report.captured.map_or_else(|| "none".to_owned(), |time| time.to_string());
    let mut text = format!("{}: {capture}\nnewest point: {newest}\n", report.server_name);
    for disk in &report.disks {
        let waiting = ByteCount(disk.waiting_bytes);
        text.push_str(&format!(
            "disk {}: {}, {}, {waiting} waiting",
            disk.disk,
            disk.path,
            ByteCount(disk.bytes)
        ));
        if let Some(copy) = &disk.copy {
            let percent = copy.done_bytes * 100 / copy.total_bytes.max(1);
            let rate = ByteCount(copy.bytes_per_second);
            text.push_str(&format!(", {percent}% copied ({rate}/s, {} sent)", ByteCount(copy.sent_bytes)));
        }
        if let Some(trouble) = &disk.trouble {
            text.push_str(&format!("; TROUBLE: {trouble}"));
        }
        text.push('\n');
    }
    text
}

fn untrack(config: &Path, output: Output) -> Result<bool, String> {
    let settings = Settings::load(config).map_err(|error| error.to_string())?;
    let set = TrackerSet::open(&settings.pin_dir).map_err(|error| error.to_string())?;
    let pinned = set.list().map_err(|error| error.to_string())?;
    for instance in &pinned {
        set.detach(&instance.key).map_err(|error| error.to_string())?;
    }
    match output {
        Output::Json => {
            let disks: Vec<_> = pinned.iter().map(|instance| instance.key.as_str()).collect();
            print_json(&json!({"untracked": disks}))?;
        }
        Output::Text => println!(
            "{} disks are tracked no longer. An agent that starts again compares them with their copies.",
            pinned.len()
        ),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_whole() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_status_says_what_is_wrong_and_how_far_a_copy_is() {
        let text = r#"{"time":"2026-01-02T03:04:05Z","server_name":"db1","version":"1","kernel":"6","boot_id":"b",
            "capture":{"mode":"stalled","reason":"Disk 0: it is gone."},"captured":"2026-01-02T03:04:00Z",
            "disks":[{"disk":0,"path":"/dev/sda","bytes":1073741824,"waiting_bytes":4096,
            "copy":{"done_bytes":536870912,"total_bytes":1073741824,"sent_bytes":1048576,"bytes_per_second":1024},
            "trouble":"it is gone"}],"cpu_ms":1,"memory_bytes":2,"events":[]}"#;
        let report: AgentReport = serde_json::from_str(text).unwrap();
        let expected = "db1: NO POINTS: Disk 0: it is gone.\nnewest point: 2026-01-02T03:04:00Z\n\
                        disk 0: /dev/sda, 1.0 GiB, 4.0 KiB waiting, 50% copied (1.0 KiB/s, 1.0 MiB sent); \
                        TROUBLE: it is gone\n";
        assert_eq!(status_text(&report), expected);
    }
}
