//! The roles that run until they are stopped, and what is done on their machines.

use std::path::Path;

use jiff::Timestamp;
use lifeboat_process_server::Settings as ProcessServerSettings;
use lifeboat_vault::Settings as VaultSettings;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::{Output, ProcessServerCommand, SiteArguments, VaultCommand};
use crate::failure::{Answer, Failure};
use crate::table::{print_json, print_line};

pub async fn vault(arguments: &SiteArguments, command: VaultCommand) -> Result<Answer, Failure> {
    match command {
        VaultCommand::Serve { config } => {
            stop_with_parent()?;
            log_to_stderr();
            lifeboat_vault::serve(settings(&config, VaultSettings::parse)?, stop_signal()?).await?;
            Ok(Answer::Done)
        }
        VaultCommand::RebuildCatalog { config, check_digests } => {
            crate::command::rebuild::run(arguments, settings(&config, VaultSettings::parse)?, check_digests)
                .await
        }
    }
}

pub async fn process_server(
    arguments: &SiteArguments,
    command: ProcessServerCommand,
) -> Result<Answer, Failure> {
    match command {
        ProcessServerCommand::Serve { config } => {
            stop_with_parent()?;
            log_to_stderr();
            let settings = settings(&config, ProcessServerSettings::from_toml)?;
            lifeboat_process_server::serve(settings, stop_signal()?).await?;
        }
        ProcessServerCommand::SetAside { config, server } => {
            let settings = settings(&config, ProcessServerSettings::from_toml)?;
            let place = lifeboat_process_server::set_aside(&settings.state, server, Timestamp::now())?;
            if arguments.output == Output::Json {
                print_json(&serde_json::json!({"server": server, "directory": place}))?;
            } else {
                print_line(&format!("What the spool held of {server} is now in {}.", place.display()));
            }
        }
    }
    Ok(Answer::Done)
}

/// Reads a role's settings; what is wrong in them is told with the file's name.
fn settings<T, E: std::fmt::Display>(
    file: &Path,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::new(format!("cannot read the settings {}: {error}", file.display())))?;
    parse(&text).map_err(|error| Failure::new(format!("{}: {error}", file.display())))
}

/// Ends when the role is asked to stop.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Under a trial, a role goes when the trial is gone, however that ended.
fn stop_with_parent() -> Result<(), Failure> {
    if std::env::var_os("LIFEBOAT_STOP_WITH_PARENT").is_some() {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    }
    Ok(())
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
