//! `lifeboat drill …`.

use lifeboat_api::DrillSchedule;

use crate::arguments::{DrillCommand, Output, SiteArguments};
use crate::command::server::drill_end;
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line, print_table, time};

pub async fn run(arguments: &SiteArguments, command: DrillCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let json = arguments.output == Output::Json;
    match command {
        DrillCommand::Schedule { server, every: Some(every), .. } => {
            let schedule = vault.schedule_drills(&server, every).await?;
            if json {
                print_json(&schedule)?;
            } else {
                print_line(&format!(
                    "{} is drilled every {}, next at {} UTC.",
                    schedule.server_name,
                    schedule.every,
                    time(schedule.next)
                ));
            }
        }
        DrillCommand::Schedule { server, every: None, .. } => {
            vault.stop_drills(&server).await?;
            if json {
                print_json(&serde_json::json!({ "off": server }))?;
            } else {
                print_line(&format!("{server} is not drilled any more, unless you say so."));
            }
        }
        DrillCommand::List => {
            let schedules = vault.drill_schedules().await?;
            if json { print_json(&schedules)? } else { print_schedules(&schedules) }
        }
    }
    Ok(Answer::Done)
}

fn print_schedules(schedules: &[DrillSchedule]) {
    if schedules.is_empty() {
        print_line("No server is drilled regularly: see `lifeboat drill schedule --help`.");
        return;
    }
    let rows: Vec<_> = schedules
        .iter()
        .map(|schedule| {
            let last = schedule.last.as_ref();
            [
                schedule.server_name.clone(),
                schedule.every.to_string(),
                time(schedule.next),
                last.map(|last| format!("{}: {}", time(last.begun), drill_end(last))).unwrap_or_default(),
                schedule.waiting.clone().unwrap_or_default(),
            ]
        })
        .collect();
    print_table(["SERVER", "EVERY", "NEXT (UTC)", "LAST (UTC)", "WAITS, SINCE"], &rows);
}
