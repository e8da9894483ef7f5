//! `lifeboat readiness`.

use lifeboat_api::{Finding, Readiness, ReadinessVerdict};

use crate::arguments::{Output, SiteArguments};
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line};

pub async fn run(arguments: &SiteArguments, server: &str) -> Result<Answer, Failure> {
    let readiness = site::connect(arguments)?.readiness(server).await?;
    if arguments.output == Output::Json {
        print_json(&readiness)?;
    } else {
        print(&readiness);
    }
    Ok(match readiness.verdict {
        ReadinessVerdict::NotReady => Answer::No,
        ReadinessVerdict::Ready | ReadinessVerdict::ReadyWithRemarks => Answer::Done,
    })
}

fn print(readiness: &Readiness) {
    let word = match readiness.verdict {
        ReadinessVerdict::Ready => "ready",
        ReadinessVerdict::ReadyWithRemarks => "ready, with remarks",
        ReadinessVerdict::NotReady => "NOT ready",
    };
    print_line(&format!("{}: {word}", readiness.server_name));
    readiness.findings.iter().flat_map(lines).for_each(|line| print_line(&line));
}

fn lines(finding: &Finding) -> Vec<String> {
    let mark = if finding.prevents { "prevents" } else { "remark" };
    let mut lines = vec![
        String::new(),
        format!("{mark:<9} {} [{}]", finding.what, finding.code),
        format!("          {}", finding.why),
    ];
    if !finding.next_step.is_empty() {
        lines.push(format!("       -> {}", finding.next_step));
    }
    lines
}
