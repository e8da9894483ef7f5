//! `lifeboat event …`.

use crate::arguments::{EventCommand, Output, SiteArguments};
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line, time};

pub async fn run(arguments: &SiteArguments, command: EventCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let EventCommand::List { server, severity, limit } = command;
    let events = vault.events(server.as_deref(), severity.as_deref(), limit).await?;
    if arguments.output == Output::Json {
        print_json(&events)?;
    } else if events.is_empty() {
        print_line("Nothing happened that was worth an event.");
    } else {
        for event in &events {
            let (severity, message, next_step) = (&event.severity, &event.message, &event.next_step);
            let line = format!("{}  {severity:<11}  {message} {next_step}", time(event.time));
            print_line(line.trim_end());
        }
    }
    Ok(Answer::Done)
}
