//! `lifeboat event …`.

use lifeboat_api::AcknowledgeEvents;

use crate::arguments::{EventCommand, Output, SiteArguments};
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line, time};

pub async fn run(arguments: &SiteArguments, command: EventCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let (server, severity, limit) = match command {
        EventCommand::List { server, severity, limit } => (server, severity, limit),
        EventCommand::Acknowledge { numbers, all } => {
            let up_to = if all {
                vault.events(None, None, 1).await?.first().map(|newest| newest.number)
            } else {
                None
            };
            let events = AcknowledgeEvents { numbers, up_to: up_to.or(all.then_some(0)) };
            let answer = vault.acknowledge(&events).await?;
            if arguments.output == Output::Json {
                print_json(&answer)?;
            } else {
                print_line(&format!(
                    "{} warnings and critical events are acknowledged.",
                    answer.acknowledged
                ));
            }
            return Ok(Answer::Done);
        }
    };
    let events = vault.events(server.as_deref(), severity.as_deref(), limit).await?;
    if arguments.output == Output::Json {
        print_json(&events)?;
    } else if events.is_empty() {
        print_line("Nothing happened that was worth an event.");
    } else {
        for event in &events {
            let (severity, message, next_step) = (&event.severity, &event.message, &event.next_step);
            let line =
                format!("{:<6}{}  {severity:<11}  {message} {next_step}", event.number, time(event.time));
            print_line(line.trim_end());
            if let (Some(when), Some(by)) = (event.acknowledged, &event.acknowledged_by) {
                print_line(&format!("      acknowledged {} by {by}", time(when)));
            }
        }
    }
    Ok(Answer::Done)
}
