//! `lifeboat verify`.

use lifeboat_api::{Request, RequestState, VerifyReport};
use lifeboat_model::{BLOCK_BYTES, ByteCount, Span};

use crate::arguments::{Output, SiteArguments};
use crate::command::server::verify_kind;
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line};
use crate::waiting::{self, Patience};

pub async fn run(
    arguments: &SiteArguments,
    server: &str,
    against_source: bool,
    timeout: Option<Span>,
) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let request = vault.verify(server, verify_kind(against_source)).await?;
    let quiet = arguments.output == Output::Json;
    let patience = Patience { limit: timeout, needs_agent: against_source, quiet };
    let request = waiting::wait(&vault, request, patience).await?;
    if request.report.is_none() && request.state != RequestState::Done {
        return Err(Failure::new(request.message.unwrap_or_else(|| {
            "the verification ended without a report; see `lifeboat event list`".to_owned()
        })));
    }
    if arguments.output == Output::Json {
        print_json(&request)?;
    } else {
        print_report(&request);
    }
    let good = request.report.as_ref().is_none_or(|report| report.good);
    Ok(if good { Answer::Done } else { Answer::No })
}

fn print_report(request: &Request) {
    let Some(report) = &request.report else { return };
    print_line(&summary(report));
    for fault in &report.faults {
        print_line(&format!("  {}: {} (needed by {} points)", fault.file, fault.message, fault.points.len()));
    }
}

fn summary(report: &VerifyReport) -> String {
    let bytes = |blocks: u64| ByteCount(blocks * BLOCK_BYTES as u64);
    let what = match report.kind {
        lifeboat_api::VerifyKind::Stored => {
            format!("{} files, {} read", report.files, ByteCount(report.bytes))
        }
        lifeboat_api::VerifyKind::AgainstSource => format!(
            "{} equal to the source, {} differ, {} written meanwhile",
            bytes(report.equal_blocks),
            bytes(report.different_blocks),
            bytes(report.changed_blocks)
        ),
    };
    if report.good {
        format!("Good: {what}.")
    } else {
        format!("NOT GOOD: {what}, {} faults.", report.faults.len())
    }
}
