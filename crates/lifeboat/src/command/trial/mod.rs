//! `lifeboat trial`: a vault, a process server and an agent on one machine, each a process of its
//! own with its own certificate and settings, as they would run on separate machines. This command
//! only makes their settings, starts them, starts one anew that dies, and shows what goes on.

mod layout;
mod screen;
mod supervisor;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use lifeboat_api::Server;
use lifeboat_client::Vault;
use lifeboat_model::Span;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::{Output, SiteArguments};
use crate::failure::{Answer, Failure};
use crate::site;

use layout::Layout;
use screen::{Form, Screen};
use supervisor::Supervisor;

#[derive(Args)]
pub struct Options {
    /// Where the site keeps all of its state; made when missing, gone on with when not.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// A disk to protect, of this machine or of the agent's. Repeatable.
    #[arg(long = "disk", value_name = "DEVICE", required = true)]
    pub disks: Vec<PathBuf>,
    /// Time between recovery points.
    #[arg(long, default_value = "5s")]
    pub interval: Span,
    /// Print a line a change instead of a live screen.
    #[arg(long)]
    pub no_ui: bool,
    /// The agent's program, when it does not lie beside this one.
    #[arg(long, value_name = "FILE", conflicts_with = "remote_agent")]
    pub agent: Option<PathBuf>,
    /// The agent runs on another machine, which reaches this one at HOST. Its settings and its
    /// certificate are written to DIR/remote-agent, for that machine's /etc/lifeboat.
    #[arg(long, value_name = "HOST", value_parser = NonEmptyStringValueParser::new())]
    pub remote_agent: Option<String>,
    /// Where the vault listens; the first free of 443 and any, when absent, and the same from then on.
    #[arg(long, value_name = "ADDRESS")]
    pub vault_listen: Option<SocketAddr>,
    /// Where the process server listens; the first free of 9443 and any, when absent, likewise.
    #[arg(long, value_name = "ADDRESS")]
    pub process_server_listen: Option<SocketAddr>,
    /// The libvirt that runs machines at the recovery site, such as qemu:///system; QEMU itself when absent.
    #[arg(long, value_name = "URI", value_parser = NonEmptyStringValueParser::new())]
    pub libvirt: Option<String>,
    /// The name of the protected server; its machine's name when absent.
    #[arg(long)]
    pub name: Option<String>,
}

/// How often the screen looks at the vault.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub async fn run(arguments: &SiteArguments, options: &Options) -> Result<Answer, Failure> {
    if options.remote_agent.is_none() && !rustix::process::geteuid().is_root() {
        return Err(Failure::new("a trial tracks disks with eBPF, which needs root: run it again with sudo"));
    }
    let agent_program = match options.remote_agent {
        Some(_) => None,
        None => Some(layout::agent_program(options)?),
    };
    if let Some(program) = &agent_program {
        check_disks(program, &options.disks)?;
    }
    let layout = Layout::prepare(options, agent_program)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut supervisor = Supervisor::new(&layout)?;
    let site = layout.site();
    site.write(&layout.dir)?;
    site::remember(&site);
    let form = match arguments.output {
        Output::Json => Form::Json,
        Output::Text if !options.no_ui && std::io::stdout().is_terminal() => Form::Live,
        Output::Text => Form::Lines,
    };
    let mut screen = Screen::new(form, &layout);
    let started = tokio::select! {
        started = start(&mut supervisor, &site, &mut screen, options, &layout) => Some(started),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    let outcome = match started {
        Some(Ok(vault)) => {
            tokio::select! {
                outcome = watch(&mut supervisor, &vault, &mut screen, &layout) => outcome,
                _ = interrupt.recv() => Ok(()),
                _ = terminate.recv() => Ok(()),
            }
        }
        Some(Err(failure)) => Err(failure),
        None => Ok(()),
    };
    screen.leave();
    screen.say(&format!("Stopping {}.", supervisor.names()));
    supervisor.stop().await;
    layout.remove_socket_directory();
    outcome?;
    if options.remote_agent.is_some() {
        screen.say(
            "Stopped. The other machine's agent goes on without it; starting the trial again goes on where it was.",
        );
    } else {
        screen
            .say("Stopped. Writes to the disks stay tracked; starting the trial again goes on where it was.");
        screen.say(&format!(
            "To end tracking: lifeboat-agent untrack --config {}",
            layout.agent_settings().display()
        ));
    }
    Ok(Answer::Done)
}

/// Lets the agent say whether it can protect these disks, before anything is made or started.
fn check_disks(agent: &Path, disks: &[PathBuf]) -> Result<(), Failure> {
    let mut command = Command::new(agent);
    command.arg("check");
    for disk in disks {
        command.arg("--disk").arg(disk);
    }
    let output = command
        .output()
        .map_err(|error| Failure::new(format!("cannot start {}: {error}", agent.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let reasons: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("no:")).map(str::trim).collect();
    if reasons.is_empty() {
        return Err(Failure::new(String::from_utf8_lossy(&output.stderr).trim()));
    }
    Err(Failure::new(format!("this cannot be protected: {}", reasons.join("; "))))
}

/// Starts the roles from right to left, so that each finds the one that it calls.
async fn start(
    supervisor: &mut Supervisor,
    site: &site::Site,
    screen: &mut Screen,
    options: &Options,
    layout: &Layout,
) -> Result<Vault, Failure> {
    supervisor.start_vault()?;
    let vault = site.connect()?;
    supervisor.await_vault(&vault).await?;
    supervisor.start_process_server()?;
    supervisor.await_process_server().await?;
    supervisor.start_agent()?;
    let server = match options.remote_agent {
        Some(_) => await_remote(supervisor, &vault, screen, layout).await?,
        None => supervisor.await_server(&vault).await?,
    };
    if server.policy.interval != options.interval {
        let mut policy = server.policy;
        policy.interval = options.interval;
        vault.set_policy(&layout.server.to_string(), &policy).await?;
    }
    Ok(vault)
}

/// Waits until the agent on another machine has made itself known, however long that takes.
async fn await_remote(
    supervisor: &mut Supervisor,
    vault: &Vault,
    screen: &mut Screen,
    layout: &Layout,
) -> Result<Server, Failure> {
    let name = layout.server.to_string();
    screen.wait(&format!(
        "Waiting for the agent of the other machine: its /etc/lifeboat is {}",
        layout.agent_dir().display()
    ));
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        for sentence in supervisor.restart_dead()? {
            screen.say(&sentence);
        }
        if let Ok(server) = vault.server(&name).await {
            return Ok(server);
        }
    }
}

async fn watch(
    supervisor: &mut Supervisor,
    vault: &Vault,
    screen: &mut Screen,
    layout: &Layout,
) -> Result<(), Failure> {
    let name = layout.server.to_string();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        for sentence in supervisor.restart_dead()? {
            screen.say(&sentence);
        }
        match tokio::try_join!(
            vault.server(&name),
            vault.events(None, Some("warning"), screen.events_wanted())
        ) {
            Ok((server, events)) => screen.show(&server, &events),
            Err(error) => screen.say(&format!("The vault does not answer: {error}")),
        }
    }
}
