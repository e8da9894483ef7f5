//! `lifeboat-demonstration`: a real Debian server in a virtual machine, protected by a trial site on
//! this machine. Runs until the trial ends, then shuts the server down; its disk stays.
#![allow(clippy::unwrap_used, reason = "what cannot go on ends with its reason")]

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser;
use lifeboat_proof::{
    DiskLayout, HOST_ADDRESS, MACHINE_DISK, NumberedCommits, Programs, Reach, ServerDisk, VirtualMachine,
    install_agent, run, wait_for,
};

/// Between two commits of the load.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Parser)]
#[command(name = "lifeboat-demonstration", about = "Protects a Debian server in a virtual machine")]
struct Arguments {
    /// Where site and server keep their state; made when missing, gone on with when not.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Time between recovery points.
    #[arg(long, default_value = "5s")]
    interval: String,
    /// Print one line a change instead of a live screen.
    #[arg(long)]
    no_ui: bool,
}

fn main() -> ExitCode {
    let stopping = Arc::new(AtomicBool::new(false));
    say_sentences(Arc::clone(&stopping));
    let arguments = Arguments::parse();
    let done = panic::catch_unwind(AssertUnwindSafe(|| demonstrate(&arguments, &stopping)));
    ExitCode::from(if done.unwrap_or(false) { 0 } else { 2 })
}

/// Makes what ends this program a sentence, and keeps quiet about what fails because it is stopped.
fn say_sentences(stopping: Arc<AtomicBool>) {
    panic::set_hook(Box::new(move |panic| {
        if !stopping.load(Ordering::Relaxed) {
            eprintln!("lifeboat-demonstration: {}", panic.payload_as_str().unwrap_or("it cannot go on"));
        }
    }));
}

fn demonstrate(arguments: &Arguments, stopping: &Arc<AtomicBool>) -> bool {
    let disk = ServerDisk::in_dir(&arguments.dir.join("server"), DiskLayout::Bios);
    // The trial is stopped, and then this stops.
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&asked)).unwrap();
    }
    println!(
        "Demonstration server: Debian 12 with PostgreSQL in a virtual machine, which boots in some minutes"
    );
    let machine = Arc::new(VirtualMachine::start(&disk, Reach::Host));
    println!(
        "Its login: ssh -i {} -p {} -o HostKeyAlias=source -o UserKnownHostsFile={} root@127.0.0.1",
        disk.key.display(),
        machine.ssh.port,
        disk.known_hosts.display()
    );
    let mut trial = start_trial(arguments);
    let (server, site, trial_id) = (Arc::clone(&machine), arguments.dir.join("site"), trial.id());
    let setting_up = thread::spawn(move || {
        let done = panic::catch_unwind(AssertUnwindSafe(|| set_up(&server, &site)));
        if done.is_err() {
            run("kill", ["-INT", &trial_id.to_string()]);
        }
        done.ok()
    });
    let ended = end_of(&mut trial, &asked);
    let early = !setting_up.is_finished();
    if early {
        // A server that still boots does not hear its power button.
        stopping.store(true, Ordering::Relaxed);
        machine.cut_power();
    }
    let load = setting_up.join().ok().flatten();
    let set_up = load.is_some();
    drop(load);
    if set_up && !early {
        println!("Shutting the server down.");
        machine.shut_down();
    }
    ended.success() && (set_up || early)
}

/// Waits for the trial, and stops it when this process was told to. Ctrl-C told it already.
fn end_of(trial: &mut Child, asked: &AtomicBool) -> ExitStatus {
    let mut told = false;
    loop {
        if let Some(ended) = trial.try_wait().unwrap() {
            return ended;
        }
        if asked.load(Ordering::Relaxed) && !told {
            // It may have ended just now.
            let _ = Command::new("kill").args(["-TERM", &trial.id().to_string()]).status();
            told = true;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn start_trial(arguments: &Arguments) -> Child {
    let mut trial = Command::new(Programs::find().lifeboat);
    trial.arg("trial").arg("--dir").arg(arguments.dir.join("site"));
    trial.args(["--remote-agent", HOST_ADDRESS, "--disk", MACHINE_DISK, "--name", "source"]);
    trial.args(["--interval", &arguments.interval]);
    if arguments.no_ui {
        trial.arg("--no-ui");
    }
    trial.spawn().unwrap()
}

/// Waits for the server and installs the agent in it; answers its load.
fn set_up(server: &VirtualMachine, site: &Path) -> NumberedCommits {
    let prepared = site.join("remote-agent");
    wait_for("the site to have the agent's settings", || prepared.join("agent.toml").exists().then_some(()));
    server.await_login();
    install_agent(&server.ssh, &prepared);
    NumberedCommits::start(&server.ssh, PAUSE)
}
