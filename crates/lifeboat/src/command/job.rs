//! `lifeboat job …`, and how every command that starts a job follows it.

use std::path::Path;

use lifeboat_api::{DrillReport, Job, JobKind, JobState, JobStep, StepState};
use lifeboat_client::Vault;
use lifeboat_model::Milliseconds;

use crate::arguments::{JobCommand, Output, SiteArguments};
use crate::command::report;
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line, print_table, time};

pub async fn run(arguments: &SiteArguments, command: JobCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    match command {
        JobCommand::List { server, limit } => {
            let jobs = vault.jobs(server.as_deref(), limit).await?;
            if arguments.output == Output::Json {
                print_json(&jobs)?;
            } else {
                print_jobs(&jobs);
            }
            Ok(Answer::Done)
        }
        JobCommand::Show { job, report } => {
            let job = vault.job(&job).await?;
            if arguments.output == Output::Json {
                print_json(&job)?;
            } else {
                print_job(&job);
            }
            write_report(arguments, &job, report.as_deref())?;
            Ok(Answer::Done)
        }
        JobCommand::Cancel { job, no_wait } => {
            let job = vault.cancel_job(&job).await?;
            let job = if no_wait { job } else { follow(arguments, &vault, &job).await? };
            tell(arguments, &job)?;
            // Cancelled is what was wanted here.
            Ok(if job.state == JobState::Failed { Answer::No } else { Answer::Done })
        }
        JobCommand::Retry { job, no_wait } => {
            let job = vault.retry_job(&job).await?;
            finish(arguments, &vault, job, no_wait, None).await
        }
    }
}

/// Follows a job to its end, unless that is not wanted, and tells it. The answer is no when it failed.
pub async fn finish(
    arguments: &SiteArguments,
    vault: &Vault,
    job: Job,
    no_wait: bool,
    report: Option<&Path>,
) -> Result<Answer, Failure> {
    let job = if no_wait { job } else { follow(arguments, vault, &job).await? };
    tell(arguments, &job)?;
    write_report(arguments, &job, report)?;
    Ok(if matches!(job.state, JobState::Failed | JobState::Cancelled) { Answer::No } else { Answer::Done })
}

/// Waits for the end of a job, and prints each step as it is done.
async fn follow(arguments: &SiteArguments, vault: &Vault, job: &Job) -> Result<Job, Failure> {
    let is_text = arguments.output == Output::Text;
    let mut told = vec![StepState::Waiting; job.steps.len()];
    if is_text {
        print_line(&format!("Job {}: {} of {}", job.id, kind_words(job.kind), job.server_name));
    }
    let to_the_end = vault.wait_for_job(job, |job| {
        for (step, told) in job.steps.iter().zip(&mut told) {
            if is_text && *told != step.state {
                tell_step(step);
                *told = step.state;
            }
        }
    });
    tokio::select! {
        job = to_the_end => Ok(job?),
        _ = tokio::signal::ctrl_c() => Err(Failure::new(format!(
            "no longer waits; job {0} goes on: follow it with `lifeboat job show {0}`, or end it with `lifeboat job \
             cancel {0}`",
            job.id
        ))),
    }
}

fn tell_step(step: &JobStep) {
    let message = step.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    match step.state {
        StepState::Waiting => {}
        // Only of those that take long enough to be seen at it.
        StepState::Running => print_line(&format!("  ...     {}", step.name)),
        StepState::Done => print_line(&format!("  done    {}{}{message}", step.name, took(step))),
        StepState::Failed => print_line(&format!("  FAILED  {}{message}", step.name)),
        StepState::Undone => print_line(&format!("  undone  {}", step.name)),
    }
}

fn took(step: &JobStep) -> String {
    report::took(step).map(|took| format!(" ({took})")).unwrap_or_default()
}

fn tell(arguments: &SiteArguments, job: &Job) -> Result<(), Failure> {
    if arguments.output == Output::Json {
        return print_json(job);
    }
    let what = kind_words(job.kind);
    // What the last step said is printed already.
    let told = job.steps.last().and_then(|step| step.message.as_ref());
    let why = job
        .message
        .as_ref()
        .filter(|why| told != Some(*why))
        .map(|message| format!(" {message}"))
        .unwrap_or_default();
    print_line(&match job.state {
        JobState::Running | JobState::RollingBack => {
            format!("Job {} goes on; follow it with `lifeboat job show {}`.", job.id, job.id)
        }
        JobState::Done => format!("The {what} is done.{why}"),
        JobState::Failed => format!("The {what} FAILED.{why}"),
        JobState::Cancelled => format!("The {what} was cancelled, and what it had made is gone."),
    });
    if let Some(drill) = &job.report {
        print_drill(drill);
    }
    if let Some(next) = what_next(job) {
        print_line(&next);
    }
    Ok(())
}

/// What can be done with the machine that a job has left running.
fn what_next(job: &Job) -> Option<String> {
    const START: &str = "start the machine";
    const REMOVE: &str = "remove the machine";
    let server = &job.server_name;
    let state = |name| job.steps.iter().find(|step| step.name == name).map(|step| step.state);
    let enter = format!("`lifeboat machine show {server}` says how to get in");
    match (job.kind, job.state) {
        (JobKind::Drill, JobState::Done | JobState::Failed)
            if state(START) == Some(StepState::Done) && state(REMOVE).is_none() =>
        {
            Some(format!("The copy runs on: {enter}, and `lifeboat failover cleanup {server}` removes it."))
        }
        (JobKind::Failover | JobKind::PlannedFailover | JobKind::ChangePoint, JobState::Done) => {
            Some(format!(
                "{server} runs at the recovery site: {enter}. Choose another point with `lifeboat failover change-point \
             {server} --point P`, or make it final with `lifeboat failover commit {server}`."
            ))
        }
        _ => None,
    }
}

fn print_drill(drill: &DrillReport) {
    print_line(&drill.verdict);
    let age = Milliseconds(drill.point_age_ms);
    print_line(&format!("  point            {} of {}, {age} old", drill.point, time(drill.point_time)));
    print_line(&format!("  ran on           {}", drill.compute));
    if let Some(ms) = drill.first_instruction_ms {
        print_line(&format!("  first step after {}", Milliseconds(ms)));
    }
    for probe in &drill.probes {
        let found = match (probe.passed, probe.after_ms, &probe.message) {
            (true, Some(ms), _) => format!("passed after {}", Milliseconds(ms)),
            (true, None, _) => "passed".to_owned(),
            (false, _, Some(why)) => format!("not passed: {why}"),
            (false, _, None) => "not passed".to_owned(),
        };
        print_line(&format!("  probe            {}: {found}", probe.probe));
    }
    if let Some(before) = &drill.previous {
        print_line(&format!("  the one before   {}: {}", time(before.begun), report::end_of(before)));
        for difference in &drill.differences {
            print_line(&format!("  differs          {difference}"));
        }
    }
    if let Some(note) = &drill.note {
        print_line(&format!("  note             {note}"));
    }
}

fn write_report(arguments: &SiteArguments, job: &Job, file: Option<&Path>) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    let Some(drill) = &job.report else {
        return Err(Failure::new(format!(
            "job {} has no report: {}",
            job.id,
            job.message.as_deref().unwrap_or("it is no drill, or has not come to that")
        )));
    };
    std::fs::write(file, report::page(job, drill))
        .map_err(|error| Failure::new(format!("cannot write the report to {}: {error}", file.display())))?;
    if arguments.output == Output::Text {
        print_line(&format!("The report is in {}.", file.display()));
    }
    Ok(())
}

fn print_jobs(jobs: &[Job]) {
    if jobs.is_empty() {
        print_line("There is no job yet.");
        return;
    }
    let rows: Vec<_> = jobs
        .iter()
        .map(|job| {
            [
                job.id.to_string(),
                job.server_name.clone(),
                kind_words(job.kind).to_owned(),
                state_word(job.state).to_owned(),
                time(job.begun),
                job.message.clone().unwrap_or_default(),
            ]
        })
        .collect();
    print_table(["JOB", "SERVER", "WHAT", "STATE", "BEGUN (UTC)", "MESSAGE"], &rows);
}

fn print_job(job: &Job) {
    print_line(&format!(
        "Job {}: {} of {}, {}",
        job.id,
        kind_words(job.kind),
        job.server_name,
        state_word(job.state)
    ));
    if let Some(message) = &job.message {
        print_line(message);
    }
    for step in &job.steps {
        let message = step.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        let state = match step.state {
            StepState::Waiting => "waiting",
            StepState::Running => "running",
            StepState::Done => "done",
            StepState::Failed => "FAILED",
            StepState::Undone => "undone",
        };
        print_line(&format!("  {state:<8}{}{}{message}", step.name, took(step)));
    }
    if let Some(drill) = &job.report {
        print_drill(drill);
    }
}

/// What a kind of job is called.
pub fn kind_words(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Drill => "test failover",
        JobKind::CleanUp => "clean-up",
        JobKind::Failover => "failover",
        JobKind::PlannedFailover => "planned failover",
        JobKind::ChangePoint => "change of point",
        JobKind::Commit => "commit",
        JobKind::Hydrate => "copying of the disks",
    }
}

fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::RollingBack => "rolling back",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}
