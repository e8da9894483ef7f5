//! `lifeboat point …`.

use lifeboat_api::{Point, RequestState};
use lifeboat_model::{ByteCount, Milliseconds};

use crate::arguments::{Output, PointCommand, SiteArguments};
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line, print_table, time};
use crate::waiting::{self, Patience};

pub async fn run(arguments: &SiteArguments, command: PointCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let json = arguments.output == Output::Json;
    match command {
        PointCommand::List { server, limit } => {
            let points = vault.points(&server, limit).await?;
            if json {
                print_json(&points)?;
            } else {
                print_points(&points);
            }
            Ok(Answer::Done)
        }
        PointCommand::Take { server, kind, wait, timeout } => {
            let mut request = vault.take_point(&server, kind).await?;
            if wait {
                let patience = Patience { limit: Some(timeout), needs_agent: true, quiet: json };
                request = waiting::wait(&vault, request, patience).await?;
            }
            if json {
                print_json(&request)?;
            } else {
                match (request.state, request.point) {
                    (RequestState::Running, _) => {
                        print_line(&format!("Asked for a {kind}-consistent point."));
                    }
                    (RequestState::Done, Some(point)) => {
                        print_line(&format!("Recovery point {point} is committed."));
                    }
                    _ => print_line(
                        request.message.as_deref().unwrap_or("The request ended without a message."),
                    ),
                }
            }
            Ok(if request.state == RequestState::Failed { Answer::No } else { Answer::Done })
        }
    }
}

fn print_points(points: &[Point]) {
    if points.is_empty() {
        print_line("There is no recovery point yet.");
        return;
    }
    let rows: Vec<_> = points
        .iter()
        .map(|point| {
            let epochs: Vec<_> =
                point.disks.iter().map(|disk| format!("{}:{}", disk.disk, disk.epoch)).collect();
            [
                point.id.to_string(),
                time(point.time),
                point.kind.to_string(),
                epochs.join(" "),
                ByteCount(point.bytes).to_string(),
                Milliseconds(point.capture_us / 1000).to_string(),
                format!("{} us", point.window_us),
            ]
        })
        .collect();
    print_table(["POINT", "TIME (UTC)", "KIND", "DISK:EPOCH", "BYTES", "CAPTURE", "WINDOW"], &rows);
}
