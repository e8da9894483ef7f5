//! `lifeboat failover …`.

use lifeboat_api::{ChangePoint, CleanUp, Failover, PlannedFailover, StepState, TestFailover};

use crate::arguments::{FailoverCommand, SiteArguments};
use crate::command::job::finish;
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::time;

pub async fn run(arguments: &SiteArguments, command: FailoverCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let (job, no_wait, report) = match command {
        FailoverCommand::Test { server, point, network, keep, report, no_wait } => {
            let test = TestFailover { point: Some(point), keep, network };
            (vault.test_failover(&server, &test).await?, no_wait, report)
        }
        FailoverCommand::Cleanup { server, note, no_wait } => {
            (vault.clean_up(&server, &CleanUp { note }).await?, no_wait, None)
        }
        FailoverCommand::Run { server, point, network, no_wait } => {
            (vault.failover(&server, &Failover { point, network }).await?, no_wait, None)
        }
        FailoverCommand::Plan { server, network, no_wait } => {
            (vault.planned_failover(&server, &PlannedFailover { network }).await?, no_wait, None)
        }
        FailoverCommand::ChangePoint { server, point, no_wait } => {
            (vault.change_point(&server, &ChangePoint { point }).await?, no_wait, None)
        }
        FailoverCommand::Commit { server } => (vault.commit_failover(&server).await?, false, None),
    };
    if job.steps.iter().any(|step| step.state != StepState::Waiting) {
        let begun = time(job.begun);
        eprintln!("lifeboat: the same is under way already: this follows job {}, begun at {begun}", job.id);
    }
    finish(arguments, &vault, job, no_wait, report.as_deref()).await
}
