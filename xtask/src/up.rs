//! `cargo xtask up`: a trial site, with a demonstration server unless disks are named: loop disks of
//! this machine, or a machine of its own.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;

use crate::demonstration::Demonstration;
use crate::{Outcome, build, packages, process, root};

#[derive(Args)]
pub struct Options {
    /// A disk to protect; without one a demonstration server is made. Repeatable.
    #[arg(long = "disk", value_name = "DEVICE")]
    disks: Vec<PathBuf>,
    /// The demonstration server is a real Debian server in a virtual machine, with the agent inside.
    #[arg(long, conflicts_with = "disks")]
    machine: bool,
    /// Where the site keeps its state.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Time between recovery points.
    #[arg(long, default_value = "5s")]
    interval: String,
    /// Print one line a change instead of a live screen.
    #[arg(long)]
    no_ui: bool,
    /// Build without optimisation, which is faster to build and slower to run.
    #[arg(long)]
    debug: bool,
}

pub fn run(options: &Options) -> Outcome {
    packages::need_root("tracking disks with eBPF")?;
    if options.machine {
        return with_machine(options);
    }
    let wanted = if options.disks.is_empty() { packages::DEMONSTRATION } else { packages::BUILD };
    packages::install(wanted)?;
    let programs = if options.debug { build::debug()? } else { build::release()? };
    let dir = make_dir(options, "trial")?;
    let stopping = outlive_signals()?;
    let demonstration =
        if options.disks.is_empty() { Some(Demonstration::start(&dir.join("demonstration"))?) } else { None };
    let disks = demonstration.as_ref().map_or(options.disks.clone(), Demonstration::disks);
    // When this process is killed, the trial is to stop by itself.
    let mut trial = Command::new("setpriv");
    trial.args(["--pdeathsig", "TERM"]).arg(&programs.lifeboat);
    trial.arg("trial").arg("--dir").arg(dir.join("site")).arg("--interval").arg(&options.interval);
    trial.arg("--agent").arg(&programs.agent);
    for disk in disks {
        trial.arg("--disk").arg(disk);
    }
    if options.no_ui {
        trial.arg("--no-ui");
    }
    let outcome = process::finish_or_stop(&mut trial, &stopping);
    drop(demonstration);
    outcome
}

/// The demonstration's program runs the machine and the trial.
fn with_machine(options: &Options) -> Outcome {
    packages::install(packages::MACHINE)?;
    let programs = build::shipped()?;
    let demonstration = build::demonstration()?;
    let dir = make_dir(options, "trial/machine")?;
    let stopping = outlive_signals()?;
    let mut command = Command::new(demonstration);
    command.arg("--dir").arg(dir).arg("--interval").arg(&options.interval);
    if options.no_ui {
        command.arg("--no-ui");
    }
    process::finish_or_stop(command.env("LIFEBOAT_AGENT", programs.agent), &stopping)
}

fn make_dir(options: &Options, default: &str) -> Result<PathBuf, String> {
    let dir = options.dir.clone().unwrap_or_else(|| root().join(default));
    std::fs::create_dir_all(&dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
    Ok(dir)
}

/// Signals that end a process only say so from now on: this one stops the trial, waits for it and then takes the
/// demonstration down.
fn outlive_signals() -> Result<Arc<AtomicBool>, String> {
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stopping))
            .map_err(|error| format!("cannot handle signals: {error}"))?;
    }
    Ok(stopping)
}
