//! `lifeboat`: all server roles as subcommands, and the operator's command line.

mod arguments;
mod command;
mod failure;
mod memory;
mod reach;
mod site;
mod table;
mod waiting;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command, Output};
use crate::failure::{Answer, Failure};

fn main() -> ExitCode {
    memory::keep_what_is_freed();
    let arguments = Arguments::parse();
    let json = arguments.site.output == Output::Json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&Failure::new(format!("cannot start threads: {error}")), json),
    };
    match runtime.block_on(run(arguments)) {
        Ok(Answer::Done) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(failure) => refuse(&failure, json),
    }
}

async fn run(arguments: Arguments) -> Result<Answer, Failure> {
    let site = &arguments.site;
    match arguments.command {
        Command::Status => command::status::status(site).await,
        Command::Server(what) => command::server::run(site, what).await,
        Command::Point(what) => command::point::run(site, what).await,
        Command::Volume(what) => command::volume::run(site, what).await,
        Command::Verify { server, against_source, timeout } => {
            command::verify::run(site, &server, against_source, timeout).await
        }
        Command::Readiness { server } => command::readiness::run(site, &server).await,
        Command::Failover(what) => command::failover::run(site, what).await,
        Command::Drill(what) => command::drill::run(site, what).await,
        Command::Machine(what) => command::machine::run(site, what).await,
        Command::Job(what) => command::job::run(site, what).await,
        Command::Target(what) => command::target::run(site, what).await,
        Command::Network(what) => command::network::run(site, what).await,
        Command::Event(what) => command::event::run(site, what).await,
        Command::Trial(options) => command::trial::run(site, &options).await,
        Command::Vault(what) => command::role::vault(site, what).await,
        Command::ProcessServer(what) => command::role::process_server(site, what).await,
        Command::Authority(what) => command::certificate::authority(site, what),
        Command::Certificate(what) => command::certificate::run(site, what),
    }
}

/// Says on standard error what could not be done, in the form that was asked for.
fn refuse(failure: &Failure, json: bool) -> ExitCode {
    if json {
        eprintln!("{}", failure.json());
    } else {
        eprintln!("lifeboat: {}", failure.sentence);
    }
    ExitCode::from(2)
}
