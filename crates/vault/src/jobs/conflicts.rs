//! Which jobs fit to what there is. Pure.

use lifeboat_api::{JobState, MachinePurpose, StepState};
use lifeboat_model::JobId;

use super::{JobRequest, Step};
use crate::catalog::{JobRow, RecoveryRow};

/// A job that does not fit to what there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Another job works on the server.
    #[error(
        "job {job}, {doing}, is under way for this server; {}wait for its end (`lifeboat job show {job}`)",
        if *can_be_cancelled { format!("cancel it (`lifeboat job cancel {job}`), or ") } else { String::new() }
    )]
    JobUnderWay {
        /// The job.
        job: JobId,
        /// What it does.
        doing: &'static str,
        /// Whether it is not yet past its point of no return.
        can_be_cancelled: bool,
    },
    /// A job that failed has left the machine half begun or half removed.
    #[error(
        "job {job}, {doing}, has failed midway: {}",
        match (*can_be_retried, *can_be_cancelled) {
            (true, true) => format!(
                "go on with `lifeboat job retry {job}` when the cause is mended, or end it with `lifeboat job cancel {job}`"
            ),
            (true, false) => format!("go on with `lifeboat job retry {job}` when the cause is mended"),
            (false, true) => format!(
                "end it with `lifeboat job cancel {job}`, or take another point with `lifeboat failover change-point`"
            ),
            (false, false) => "take another point with `lifeboat failover change-point`".to_owned(),
        }
    )]
    MachineOpen {
        /// The job.
        job: JobId,
        /// What it does.
        doing: &'static str,
        /// Whether no other job came after it.
        can_be_retried: bool,
        /// Whether it is not yet past its point of no return.
        can_be_cancelled: bool,
    },
    /// Somebody switches the machine.
    #[error(
        "the machine of this server is being switched on or off at the moment; try again in some seconds"
    )]
    PowerSwitched,
    /// A drill's copy is there.
    #[error(
        "a drill of this server from point {point} is running; end it first with `lifeboat failover cleanup`"
    )]
    DrillRunning {
        /// Its point.
        point: lifeboat_model::PointId,
    },
    /// There is no drill.
    #[error("there is no drill of this server, so there is nothing to clean up")]
    NoDrill,
    /// Its machine would find no room.
    #[error("{0}")]
    NoRoom(Box<super::NoRoom>),
    /// Another machine has its address.
    #[error(
        "{server} would have the address {address} in {network}, which the machine of {other} has there; {}",
        if *is_drill {
            format!("end that drill first (`lifeboat failover cleanup {other}`), or choose another network")
        } else {
            "choose another network".to_owned()
        }
    )]
    AddressTaken {
        /// The server.
        server: String,
        /// Whose machine has the address.
        other: String,
        /// That machine is a drill's.
        is_drill: bool,
        /// The address: of the guest, or of its network card.
        address: String,
        /// The network or bridge.
        network: String,
    },
    /// It has no place in the network.
    #[error(
        "the address of this server, {address}, cannot be had in the network {network}, which has {subnet} with the \
         gateway {gateway} and no DHCP; choose a network that has it, or set another address with `lifeboat target \
         set --address`"
    )]
    AddressForeign {
        /// The server's address.
        address: std::net::Ipv4Addr,
        /// The network.
        network: String,
        /// The network's addresses.
        subnet: lifeboat_model::Ipv4Subnet,
        /// Its gateway.
        gateway: std::net::Ipv4Addr,
    },
    /// No address of the network is free.
    #[error(
        "every address of {subnet}, which the network {network} has, is a machine's or its gateway's; end a drill in \
         it (`lifeboat network show {network}`), or choose another network"
    )]
    NetworkFull {
        /// The network.
        network: String,
        /// The network's addresses.
        subnet: lifeboat_model::Ipv4Subnet,
    },
    /// Two networks cannot have one name.
    #[error("there is a network {name} already")]
    NetworkNameTaken {
        /// The name.
        name: String,
    },
    /// A network is used.
    #[error("the network {name} is used: {users}; change that first")]
    NetworkInUse {
        /// The network.
        name: String,
        /// By what.
        users: String,
    },
    /// The server has failed over.
    #[error(
        "this server has failed over to point {point} and runs at the recovery site; {}",
        if *committed {
            "that is final"
        } else {
            "choose another point with `lifeboat failover change-point`, or make it final with `lifeboat failover commit`"
        }
    )]
    FailedOver {
        /// Its point.
        point: lifeboat_model::PointId,
        /// Whether it was committed.
        committed: bool,
    },
    /// The server has not failed over.
    #[error(
        "this server has not failed over, so there is nothing to {0}; start with `lifeboat failover run`"
    )]
    NotFailedOver(&'static str),
    /// The point of a change is not named.
    #[error("the source has no part in a change of point any more: name a point, or `latest-processed`")]
    LatestOfChange,
    /// The job has ended.
    #[error("job {job} has ended: it is {state}")]
    Ended {
        /// The job.
        job: JobId,
        /// How it ended.
        state: &'static str,
    },
    /// The job is past its point of no return.
    #[error(
        "job {job} cannot be cancelled any more: it has begun to {step}, and going back would lose what came of it"
    )]
    NoReturn {
        /// The job.
        job: JobId,
        /// The step.
        step: &'static str,
    },
    /// The job has not failed.
    #[error("job {job} is {state}; only a job that failed, and was not rolled back, is retried")]
    NotFailed {
        /// The job.
        job: JobId,
        /// How far it is.
        state: &'static str,
    },
    /// Another job came after it.
    #[error("job {job} cannot be retried: job {newer} came after it; begin a new one")]
    Overtaken {
        /// The job.
        job: JobId,
        /// The newer one.
        newer: JobId,
    },
}

impl Conflict {
    /// For a job that works on the server.
    pub(super) fn under_way(job: &JobRow) -> Self {
        let can_be_cancelled = check_cancel(job).is_ok();
        Self::JobUnderWay { job: job.id, doing: job.request.sentence(), can_be_cancelled }
    }

    /// For a job that failed and has left the machine half begun.
    pub(super) fn machine_open(job: &JobRow, is_newest: bool) -> Self {
        let (can_be_retried, can_be_cancelled) = (is_newest, check_cancel(job).is_ok());
        Self::MachineOpen { job: job.id, doing: job.request.sentence(), can_be_retried, can_be_cancelled }
    }

    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::JobUnderWay { .. } => "job_under_way",
            Self::MachineOpen { .. } => "job_failed",
            Self::PowerSwitched => "power_switched",
            Self::DrillRunning { .. } => "drill_running",
            Self::NoDrill => "no_drill",
            Self::NoRoom(_) => "no_room",
            Self::AddressTaken { .. } => "address_taken",
            Self::AddressForeign { .. } => "address_foreign",
            Self::NetworkFull { .. } => "network_full",
            Self::NetworkNameTaken { .. } => "name_taken",
            Self::NetworkInUse { .. } => "network_in_use",
            Self::FailedOver { .. } => "failed_over",
            Self::NotFailedOver(_) => "not_failed_over",
            Self::LatestOfChange => "invalid",
            Self::Ended { .. } => "job_ended",
            Self::NoReturn { .. } => "no_return",
            Self::NotFailed { .. } => "job_not_failed",
            Self::Overtaken { .. } => "job_overtaken",
        }
    }
}

/// Judges a request by the machine that there is.
pub(super) fn check(request: &JobRequest, recovery: Option<&RecoveryRow>) -> Result<(), Conflict> {
    let committed = recovery.is_some_and(|recovery| recovery.committed.is_some());
    let failed_over = |point| Conflict::FailedOver { point, committed };
    match (request, recovery.map(|recovery| (recovery.purpose, recovery.point))) {
        (JobRequest::ChangePoint { point }, _) if point == "latest" => Err(Conflict::LatestOfChange),
        (
            JobRequest::Drill { .. } | JobRequest::Failover { .. } | JobRequest::PlannedFailover { .. },
            Some((MachinePurpose::Drill, point)),
        ) => Err(Conflict::DrillRunning { point }),
        (
            JobRequest::Drill { .. } | JobRequest::Failover { .. } | JobRequest::PlannedFailover { .. },
            None,
        )
        | (JobRequest::CleanUp { .. }, Some((MachinePurpose::Drill, _))) => Ok(()),
        (JobRequest::CleanUp { .. }, None) => Err(Conflict::NoDrill),
        (JobRequest::ChangePoint { .. } | JobRequest::Commit, Some((MachinePurpose::Failover, _)))
            if !committed =>
        {
            Ok(())
        }
        (JobRequest::Hydrate { .. }, Some((MachinePurpose::Failover, _))) => Ok(()),
        (_, Some((MachinePurpose::Failover, point))) => Err(failed_over(point)),
        (JobRequest::Hydrate { .. }, _) => Err(Conflict::NotFailedOver("copy")),
        (JobRequest::ChangePoint { .. }, _) => Err(Conflict::NotFailedOver("change")),
        (JobRequest::Commit, _) => Err(Conflict::NotFailedOver("commit")),
    }
}

/// Whether a job can be cancelled.
pub(super) fn check_cancel(job: &JobRow) -> Result<(), Conflict> {
    let stands =
        job.state == JobState::Failed && job.steps.iter().any(|step| step.state == StepState::Failed);
    if !stands && !matches!(job.state, JobState::Running | JobState::RollingBack) {
        return Err(Conflict::Ended { job: job.id, state: state_word(job.state) });
    }
    match passed(job) {
        Some(step) => Err(Conflict::NoReturn { job: job.id, step: step.name() }),
        None => Ok(()),
    }
}

/// Whether a job that failed has left its server's machine half begun or half removed: only going on or back with it
/// settles that.
pub(super) fn leaves_machine_open(job: &JobRow) -> bool {
    let any = |wanted| job.steps.iter().any(|row| row.state == wanted);
    let has_removed =
        matches!(job.state_of(Step::RemoveFormerMachine), Some(StepState::Done | StepState::Failed));
    let is_open = match job.state_of(Step::StartMachine) {
        Some(StepState::Done) => false,
        Some(StepState::Failed) => true,
        _ => has_removed,
    };
    job.state == JobState::Failed
        && job.request.starts_or_removes()
        && any(StepState::Failed)
        && (is_open || any(StepState::Undone))
}

/// Whether a job was a change of point that ended before anything became of the machine that there was.
pub(super) fn has_touched_nothing(job: &JobRow) -> bool {
    matches!(job.request, JobRequest::ChangePoint { .. })
        && matches!(job.state, JobState::Failed | JobState::Cancelled)
        && matches!(job.state_of(Step::RemoveFormerMachine), Some(StepState::Waiting | StepState::Undone))
        && job.state_of(Step::StartMachine) != Some(StepState::Done)
}

/// Whether a failover can be undone by cancelling it, although it failed: not when what it has begun was replaced or made
/// final since.
pub(super) fn check_undo(job: &JobRow, recovery: Option<&RecoveryRow>) -> Result<(), Conflict> {
    let fences = matches!(job.request, JobRequest::Failover { .. } | JobRequest::PlannedFailover { .. });
    match recovery {
        Some(row)
            if fences
                && row.purpose == MachinePurpose::Failover
                && (row.committed.is_some() || row.machine != job.work.machine) =>
        {
            Err(Conflict::FailedOver { point: row.point, committed: row.committed.is_some() })
        }
        _ => Ok(()),
    }
}

/// The step of no return, if it is being done or is done. When it failed there is nothing of it.
fn passed(job: &JobRow) -> Option<Step> {
    let step = job.request.point_of_no_return()?;
    matches!(job.state_of(step), Some(StepState::Running | StepState::Done)).then_some(step)
}

/// Whether a job can be retried.
pub(super) fn check_retry(job: &JobRow) -> Result<(), Conflict> {
    let stands = job.steps.iter().any(|step| step.state == StepState::Failed);
    if job.state == JobState::Failed && stands {
        return Ok(());
    }
    let state =
        if job.state == JobState::Failed { "failed and was rolled back" } else { state_word(job.state) };
    Err(Conflict::NotFailed { job: job.id, state })
}

const fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::RollingBack => "being rolled back",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}
