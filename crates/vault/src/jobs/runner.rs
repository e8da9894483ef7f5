//! Working on a job: one step after the other, or back.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_api::{JobState, StepState};
use lifeboat_wire::event::{Event, Severity};
use tokio::sync::watch;

use super::{JobError, JobRequest, Jobs, Next, Order, Step};
use crate::catalog::{Acknowledged, JobRow};

/// How long to wait until a catalog that failed is tried again.
const CATALOG_RETRY: Duration = Duration::from_secs(5);

impl Jobs {
    /// Works on a job in a task of its own.
    pub(super) fn work_on(self: &Arc<Self>, mut job: JobRow) {
        let order = if job.cancel { Order::Cancel } else { Order::GoOn };
        let (sender, receiver) = watch::channel(order);
        self.at_work().insert(job.id, sender.clone());
        let jobs = Arc::clone(self);
        tokio::spawn(async move {
            // The job's state is in the catalog; without it nothing may be done.
            while let Err(error) = jobs.work(&mut job, &receiver).await {
                tracing::error!(job = %job.id, %error, "the job waits for the catalog");
                tokio::time::sleep(CATALOG_RETRY).await;
                if *receiver.borrow() == Order::Pause {
                    break;
                }
                // What was not stored has not been: it goes on from what the catalog says.
                if let Ok(stored) = jobs.row(job.id).await {
                    job = stored;
                }
            }
            // Whoever retried the job meanwhile works on it with a sender of its own.
            let mut at_work = jobs.at_work();
            if at_work.get(&job.id).is_some_and(|current| current.same_channel(&sender)) {
                at_work.remove(&job.id);
            }
            drop(at_work);
            jobs.vault.changed();
        });
    }

    /// Goes on until the job has ended or is to pause. Fails only when its state cannot be stored.
    async fn work(
        self: &Arc<Self>,
        job: &mut JobRow,
        order: &watch::Receiver<Order>,
    ) -> Result<(), JobError> {
        loop {
            let now = *order.borrow();
            match (job.state, now) {
                (_, Order::Pause) => return Ok(()),
                (JobState::Running, Order::Cancel) => {
                    job.cancel = true;
                    job.state = JobState::RollingBack;
                    self.store(job).await?;
                }
                (JobState::Running, Order::GoOn) => match next_step(job) {
                    Some(number) => self.forward(job, number, order).await?,
                    None => return self.end(job).await,
                },
                (JobState::RollingBack, _) => match last_begun(job) {
                    Some(number) => self.back(job, number).await?,
                    None => return self.end(job).await,
                },
                (JobState::Done | JobState::Failed | JobState::Cancelled, _) => return Ok(()),
            }
        }
    }

    async fn forward(
        self: &Arc<Self>,
        job: &mut JobRow,
        number: usize,
        order: &watch::Receiver<Order>,
    ) -> Result<(), JobError> {
        let step = job.steps[number].step;
        let row = &mut job.steps[number];
        (row.state, row.attempts) = (StepState::Running, row.attempts + 1);
        (row.begun, row.ended, row.message) = (Some((self.clock)()), None, None);
        self.store(job).await?;
        tracing::debug!(job = %job.id, step = step.name(), "begins a step");
        let result = match self.interruption.before(step) {
            Ok(()) => self.run(step, job, order.clone()).await,
            Err(error) => Err(error),
        };
        let result = result.and_then(|message| self.interruption.after(step).map(|()| message));
        let row = &mut job.steps[number];
        row.ended = Some((self.clock)());
        match result {
            Ok(message) => (row.state, row.message) = (StepState::Done, message),
            // Paused, it is begun again by the next process; cancelled, it is undone like the others.
            Err(JobError::Interrupted) => return Ok(()),
            Err(error) => {
                tracing::warn!(job = %job.id, step = step.name(), %error, "a step failed");
                (row.state, row.message) = (StepState::Failed, Some(error.to_string()));
                let what = what_stands(job).map(|what| format!(" {what}.")).unwrap_or_default();
                job.message = Some(format!("Could not {}: {error}.{what}", step.name()));
                job.state = if job.request.rolls_back() { JobState::RollingBack } else { JobState::Failed };
                if job.state == JobState::Failed {
                    return self.end(job).await;
                }
            }
        }
        self.store(job).await
    }

    async fn back(self: &Arc<Self>, job: &mut JobRow, number: usize) -> Result<(), JobError> {
        let step = job.steps[number].step;
        tracing::debug!(job = %job.id, step = step.name(), "undoes a step");
        match self.undo(step, job).await {
            Ok(()) => job.steps[number].state = StepState::Undone,
            Err(error) => {
                // What is left must not be forgotten: it stands as failed, to be cancelled again.
                tracing::error!(job = %job.id, step = step.name(), %error, "a step could not be undone");
                job.steps[number].state = StepState::Failed;
                job.steps[number].message = Some(error.to_string());
                job.message = Some(format!(
                    "Could not undo \"{}\": {error}; mend the cause, then run: lifeboat job cancel {}",
                    step.name(),
                    job.id
                ));
                job.state = JobState::Failed;
                return self.end(job).await;
            }
        }
        self.store(job).await
    }

    /// Notes how a job ended, and begins the one that follows it.
    async fn end(self: &Arc<Self>, job: &mut JobRow) -> Result<(), JobError> {
        let verdict = job.work.verdict.as_ref();
        let is_down =
            matches!(job.request, JobRequest::Drill { .. }) && verdict.is_some_and(|verdict| !verdict.up);
        job.state = match job.state {
            JobState::Running if is_down => {
                job.message = verdict.map(|verdict| verdict.sentence.clone());
                JobState::Failed
            }
            JobState::Running => {
                job.message = job.work.nothing_lost.clone().or_else(|| what_follows(job));
                JobState::Done
            }
            // What failed was rolled back: it failed, unless somebody wanted the end of it.
            JobState::RollingBack if job.cancel => JobState::Cancelled,
            JobState::RollingBack => JobState::Failed,
            ended => ended,
        };
        job.ended = Some((self.clock)());
        let next = match &job.work.next {
            Some(Next { job: id, request }) if job.state == JobState::Done => {
                let recovery = self.vault.catalog().recovery(job.server).await?;
                Some(self.new_job(*id, job.server, request.clone(), recovery.as_ref())?)
            }
            _ => None,
        };
        // The event first: who sees the end finds it too. Told twice after a crash, it counts once.
        self.tell_end(job).await?;
        // Whoever wants to cancel what follows finds it at work.
        let _guard = self.beginning.lock().await;
        // Together, so that what follows begins whatever happens to this process now.
        self.vault.catalog().end_job(job, next.as_ref()).await?;
        self.vault.changed();
        tracing::info!(job = %job.id, state = ?job.state, "a job has ended");
        if let Some(next) = next {
            self.work_on(next);
        }
        Ok(())
    }

    async fn tell_end(&self, job: &JobRow) -> Result<(), JobError> {
        let kind = code_word(&job.request);
        let what = job.request.sentence();
        let (severity, end, next_step) = match job.state {
            JobState::Done => (Severity::Information, "done", String::new()),
            JobState::Cancelled => (Severity::Information, "cancelled", String::new()),
            // Nothing is lost by it: the machine runs as before.
            _ if matches!(job.request, JobRequest::Hydrate { .. }) => (
                Severity::Warning,
                "failed",
                format!(
                    "The machine goes on with the vault's volume. When the cause is mended, run: lifeboat job retry {}",
                    job.id
                ),
            ),
            _ => (
                Severity::Critical,
                "failed",
                format!("See what it did with `lifeboat job show {}`.", job.id),
            ),
        };
        let why = job.message.as_ref().map(|message| format!(" {message}")).unwrap_or_default();
        self.vault
            .note(Event {
                time: (self.clock)(),
                severity,
                code: format!("{kind}_{end}"),
                server: Some(job.server),
                disk: None,
                message: format!("Job {}, {what}, is {end}.{why}", job.id),
                next_step,
            })
            .await?;
        match job.state {
            JobState::Done => {
                let which = Acknowledged::Of { server: job.server, codes: settles(&job.request) };
                let by = format!("job {}, {what}", job.id);
                self.vault.catalog().acknowledge(&which, &by, (self.clock)()).await?;
                Ok(())
            }
            // It had failed, and that is over; what another job has left is not.
            JobState::Cancelled if job.message.is_some() => self.settle_failure(job).await,
            _ => Ok(()),
        }
    }

    /// That the job failed is over: it goes on, or was undone.
    pub(super) async fn settle_failure(&self, job: &JobRow) -> Result<(), JobError> {
        let code = format!("{}_failed", code_word(&job.request));
        let which = Acknowledged::Of { server: job.server, codes: &[&code] };
        self.vault.catalog().acknowledge(&which, &format!("job {}", job.id), (self.clock)()).await?;
        Ok(())
    }

    pub(super) async fn store(&self, job: &JobRow) -> Result<(), JobError> {
        self.vault.catalog().update_job(job).await?;
        self.vault.changed();
        Ok(())
    }
}

/// The beginning of the codes of events about such a job.
fn code_word(request: &JobRequest) -> String {
    let kind = serde_json::to_string(&request.kind()).unwrap_or_default();
    kind.trim_matches('"').replace('-', "_")
}

/// Codes of events that are of no concern any more when a job like this one is done.
fn settles(request: &JobRequest) -> &'static [&'static str] {
    match request {
        JobRequest::Drill { .. } => &["drill_failed", "drill_overdue"],
        JobRequest::CleanUp { .. } => &["clean_up_failed"],
        JobRequest::Failover { .. }
        | JobRequest::PlannedFailover { .. }
        | JobRequest::ChangePoint { .. }
        | JobRequest::Commit => {
            &["failover_failed", "planned_failover_failed", "change_point_failed", "commit_failed"]
        }
        JobRequest::Hydrate { .. } => &["hydrate_failed"],
    }
}

/// What a failover or a change of point that failed leaves as it is, and what can be done about it.
fn what_stands(job: &JobRow) -> Option<String> {
    let is_change = matches!(job.request, JobRequest::ChangePoint { .. });
    if !is_change && !matches!(job.request, JobRequest::Failover { .. }) {
        return None;
    }
    let is_started = job.state_of(Step::StartMachine) == Some(StepState::Done);
    let is_fenced = matches!(job.state_of(Step::Fence), Some(StepState::Done | StepState::Failed));
    let is_former_gone = job.state_of(Step::RemoveFormerMachine) == Some(StepState::Done);
    let is_off = job.work.verdict.as_ref().is_some_and(|verdict| verdict.is_off);
    let id = job.id;
    Some(if is_started && is_change {
        let runs = if is_off {
            "The machine from the new point is off: see why (`lifeboat machine console`) and start it (`lifeboat machine \
             start`)"
        } else {
            "The machine runs from the new point all the same: look at it (`lifeboat machine console`)"
        };
        format!(
            "{runs}, then wait for it again with `lifeboat job retry {id}`, take another point with `lifeboat failover \
             change-point`, or make it final as it is with `lifeboat failover commit`"
        )
    } else if is_change && is_former_gone {
        format!(
            "No machine runs meanwhile: go on with `lifeboat job retry {id}` when the cause is mended, or take another \
             point with `lifeboat failover change-point`"
        )
    } else if is_change {
        format!(
            "The machine that there was is kept: try again with `lifeboat job retry {id}`, or end it with `lifeboat job \
             cancel {id}`"
        )
    } else if is_started {
        let runs = if is_off {
            "The machine is off, and the source may send nothing: see why (`lifeboat machine console`) and start it \
             (`lifeboat machine start`)"
        } else {
            "The machine runs all the same, and the source may send nothing: look at the machine (`lifeboat machine \
             console`)"
        };
        format!(
            "{runs}, then wait for it again with `lifeboat job retry {id}`, take another point with `lifeboat failover \
             change-point`, or make it final as it is with `lifeboat failover commit`"
        )
    } else if is_fenced {
        format!(
            "The source may send nothing meanwhile: go on with `lifeboat job retry {id}` when the cause is mended, or let \
             the source go on with `lifeboat job cancel {id}`"
        )
    } else {
        format!(
            "Nothing has changed for the source: try again with `lifeboat job retry {id}`, or end it with `lifeboat job \
             cancel {id}`"
        )
    })
}

/// What a commit says of the disks, and a clean-up of the drill, which is their last step's message.
fn what_follows(job: &JobRow) -> Option<String> {
    let says = matches!(job.request, JobRequest::Commit | JobRequest::CleanUp { .. });
    job.steps.last().filter(|_| says)?.message.clone()
}

/// The first step that is not done.
fn next_step(job: &JobRow) -> Option<usize> {
    job.steps.iter().position(|step| step.state != StepState::Done)
}

/// The last step of which there may be something.
fn last_begun(job: &JobRow) -> Option<usize> {
    job.steps.iter().rposition(|step| !matches!(step.state, StepState::Waiting | StepState::Undone))
}
