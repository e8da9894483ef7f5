//! Jobs: what operators start and what must end in a known state whatever happens meanwhile.
//!
//! A job is a row in the catalog: what was asked for, its steps, and its [`Work`], in which the
//! steps leave what they have found and made. Ids of what will be made are drawn when the job is
//! asked for, and every step can be done twice. So:
//!
//! - Before a step the job says that it is being done, after it that it is done, each durably.
//! - A vault that starts goes on with the step that was being done, from its beginning.
//! - Two jobs never work on one server: the second joins the first, if both ask for the same, or
//!   is refused with the reason.
//! - A step that fails stops the job. Drills and planned failovers are rolled back then by themselves;
//!   everything else stands where it is, and is retried from there or cancelled by an operator.
//! - Cancelling undoes the steps that were begun, the last one first. From its point of no return
//!   on ([`JobRequest::point_of_no_return`]) a job cannot be cancelled.
//!
//! [`steps`] has what each step does, and how it is undone.

mod conflicts;
mod differences;
mod drills;
mod hydration;
mod networks;
mod placing;
mod power;
mod request;
mod room;
mod runner;
mod source;
mod steps;
mod up;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use lifeboat_compute::{ComputeError, Provider};
use lifeboat_model::{JobId, ServerId};
use tokio::sync::watch;

use crate::catalog::{CatalogError, JobRow, RecoveryRow};
use crate::error::VaultError;
use crate::overview::LATEST;
use crate::ssh_identity::{SshError, SshIdentity};
use crate::vault::Vault;
use crate::volumes::{Volumes, VolumesError};

pub use conflicts::Conflict;
pub use hydration::Hydration;
pub use power::StartedAgain;
pub use request::{JobRequest, Next, Step, Work};
pub use room::{MachineLimits, NoRoom};
pub use steps::Interruption;

/// A job cannot be begun, or a step of one failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The vault refuses or fails.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A volume cannot be opened or closed.
    #[error(transparent)]
    Volumes(#[from] VolumesError),
    /// The machine's provider fails.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// There is too little memory, and drills have some of it.
    #[error("{error}; {drills}")]
    Memory {
        /// How the provider refused.
        error: ComputeError,
        /// What can be cleaned up.
        drills: String,
    },
    /// The vault's key for its servers' machines cannot be had.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// It does not fit to what there is.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The machine did not come up.
    #[error("{0}")]
    NotUp(String),
    /// The source does not do its part of a planned failover.
    #[error("{0}")]
    Source(String),
    /// The disks were not copied.
    #[error("{0}")]
    NotCopied(String),
    /// Somebody wants the job to end, or the vault stops.
    #[error("it was interrupted")]
    Interrupted,
    /// The step was made to fail, for a test.
    #[error("the step was made to fail")]
    MadeToFail,
}

impl From<CatalogError> for JobError {
    fn from(error: CatalogError) -> Self {
        Self::Vault(error.into())
    }
}

/// All jobs of a vault, and what they work with.
pub struct Jobs {
    vault: Arc<Vault>,
    volumes: Arc<Volumes>,
    provider: Arc<dyn Provider>,
    /// With what commands are run in machines.
    ssh: SshIdentity,
    clock: fn() -> Timestamp,
    /// For tests: what happens around steps.
    interruption: Arc<dyn Interruption>,
    /// How much machines may take together.
    limits: Mutex<MachineLimits>,
    /// How disks are copied once a failover is final; not by themselves if none.
    hydration: Mutex<Option<Hydration>>,
    /// Held while a machine's network and address are chosen and noted.
    placing: tokio::sync::Mutex<()>,
    /// Held while it is decided whether a job may begin.
    beginning: tokio::sync::Mutex<()>,
    /// Servers whose machines are being switched on or off.
    switching: Mutex<BTreeSet<ServerId>>,
    at_work: Mutex<BTreeMap<JobId, watch::Sender<Order>>>,
}

/// What the one who works on a job is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    #[default]
    GoOn,
    /// End after rolling back.
    Cancel,
    /// End where it is; the next start of the vault goes on.
    Pause,
}

impl Jobs {
    /// Jobs with the machines of `provider`. Nothing is begun yet: see [`Jobs::resume`].
    #[must_use]
    pub fn new(
        volumes: Arc<Volumes>,
        provider: Arc<dyn Provider>,
        clock: fn() -> Timestamp,
        interruption: Arc<dyn Interruption>,
    ) -> Arc<Self> {
        let vault = Arc::clone(volumes.vault());
        let ssh = SshIdentity::new(vault.state_path(), vault.id());
        let (placing, beginning) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        let (limits, hydration) = (Mutex::default(), Mutex::default());
        let (switching, at_work) = (Mutex::default(), Mutex::default());
        Arc::new(Self {
            vault,
            volumes,
            provider,
            ssh,
            clock,
            interruption,
            limits,
            hydration,
            placing,
            beginning,
            switching,
            at_work,
        })
    }

    /// Sets how much machines may take together, for drills that begin from now on.
    pub fn set_limits(&self, limits: MachineLimits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    fn limits(&self) -> MachineLimits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how disks are copied once a failover is final, from the next commit on; not by themselves if none.
    pub fn set_hydration(&self, hydration: Option<Hydration>) {
        *self.hydration.lock().unwrap_or_else(PoisonError::into_inner) = hydration;
    }

    /// Goes on with all jobs that a former process has begun, and starts the machines again that
    /// ended with this machine or its vault. A guest that has shut itself down stays off, and so does one
    /// that an operator had stopped.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn resume(self: &Arc<Self>) -> Result<(), JobError> {
        let under_way = self.vault.catalog().jobs_under_way().await?;
        self.start_all_again().await?;
        for job in under_way {
            tracing::info!(job = %job.id, "goes on with a job of before the restart");
            self.work_on(job);
        }
        Ok(())
    }

    /// Powers all machines off, for a vault that takes them along when it stops.
    pub async fn power_off_all(&self) {
        for machine in self.provider.machines().await.unwrap_or_default() {
            if let Err(error) = self.provider.power_off(machine).await {
                tracing::error!(%machine, %error, "a machine could not be powered off");
            }
        }
    }

    /// Begins a job, or joins the one that does the same already.
    ///
    /// # Errors
    /// When there is no such server or point, it does not fit to what there is, or the catalog fails.
    pub async fn begin(self: &Arc<Self>, server: ServerId, request: JobRequest) -> Result<JobRow, JobError> {
        let _guard = self.beginning.lock().await;
        let catalog = self.vault.catalog();
        let under_way = catalog.jobs_under_way().await?;
        if let Some(job) = under_way.iter().find(|job| job.server == server) {
            if job.request == request && !job.cancel {
                return Ok(job.clone());
            }
            return Err(Conflict::under_way(job).into());
        }
        self.refuse_while_switched(server)?;
        let recovery = catalog.recovery(server).await?;
        conflicts::check(&request, recovery.as_ref())?;
        if !request.starts_or_removes()
            && let Some(why) = self.in_hand(server).await?
        {
            return Err(why.into());
        }
        // Looked for now, so that a wrong name is refused at once and not by a failed job; and a server without any
        // point before its source is fenced for nothing.
        if let Some(text) = request.point().or(request.makes_machine().then_some(LATEST[0])) {
            self.vault.find_point(server, text).await?;
        }
        if request.makes_machine() {
            let derived = self.derived(server, steps::purpose(&request)).await?;
            self.attachment(server, &request, &derived).await?;
        }
        if matches!(request, JobRequest::Drill { .. }) {
            self.check_room(server, &under_way).await?;
        }
        if let (JobRequest::Hydrate { .. }, Some(recovery)) = (&request, &recovery)
            && let Some(why) = self.provider.why_no_copies()
        {
            return Err(ComputeError::NotSupported { machine: recovery.machine, why }.into());
        }
        let job = self.new_job(self.new_id()?, server, request, recovery.as_ref())?;
        catalog.insert_job(&job).await?;
        tracing::info!(job = %job.id, %server, "{}", job.request.sentence());
        self.work_on(job.clone());
        Ok(job)
    }

    fn new_id(&self) -> Result<JobId, VaultError> {
        Ok(JobId::new(crate::random::number(self.vault.randomness())?))
    }

    /// A job of which nothing is done yet.
    fn new_job(
        &self,
        id: JobId,
        server: ServerId,
        request: JobRequest,
        recovery: Option<&RecoveryRow>,
    ) -> Result<JobRow, VaultError> {
        Ok(JobRow {
            id,
            server,
            steps: request.steps().into_iter().map(crate::catalog::StepRow::new).collect(),
            request,
            work: Work::new(self.vault.randomness(), recovery)?,
            state: lifeboat_api::JobState::Running,
            cancel: false,
            begun: (self.clock)(),
            ended: None,
            message: None,
            report: None,
        })
    }

    /// Ends a job and removes what it made. Asking again changes nothing.
    ///
    /// # Errors
    /// When it has ended, or is past its point of no return.
    pub async fn cancel(self: &Arc<Self>, job: JobId) -> Result<JobRow, JobError> {
        let _guard = self.beginning.lock().await;
        let mut row = self.row(job).await?;
        conflicts::check_cancel(&row)?;
        self.refuse_while_switched(row.server)?;
        let under_way = self.vault.catalog().jobs_under_way().await?;
        if let Some(other) = under_way.iter().find(|other| other.server == row.server && other.id != job) {
            return Err(Conflict::under_way(other).into());
        }
        conflicts::check_undo(&row, self.vault.catalog().recovery(row.server).await?.as_ref())?;
        self.vault.catalog().set_cancel(job, true).await?;
        row.cancel = true;
        if let Some(order) = self.at_work().get(&job) {
            order.send_replace(Order::Cancel);
            return Ok(row);
        }
        // It had failed and stands where it is.
        row.state = lifeboat_api::JobState::RollingBack;
        row.ended = None;
        self.vault.catalog().update_job(&row).await?;
        self.work_on(row.clone());
        Ok(row)
    }

    /// Goes on with a job that failed, from the step that failed.
    ///
    /// # Errors
    /// When it has not failed, was rolled back, or another one works on its server.
    pub async fn retry(self: &Arc<Self>, job: JobId) -> Result<JobRow, JobError> {
        let _guard = self.beginning.lock().await;
        let mut row = self.row(job).await?;
        conflicts::check_retry(&row)?;
        self.refuse_while_switched(row.server)?;
        let newest = self.vault.catalog().jobs(Some(row.server), 1).await?;
        if let Some(newer) = newest.into_iter().find(|newest| newest.id != job) {
            return Err(Conflict::Overtaken { job, newer: newer.id }.into());
        }
        if let JobRequest::ChangePoint { .. } = row.request {
            // The failover may have been ended since.
            conflicts::check(&row.request, self.vault.catalog().recovery(row.server).await?.as_ref())?;
        }
        self.settle_failure(&row).await?;
        (row.state, row.ended, row.message) = (lifeboat_api::JobState::Running, None, None);
        row.work.awaited_since = Some((self.clock)());
        self.vault.catalog().update_job(&row).await?;
        self.work_on(row.clone());
        Ok(row)
    }

    /// Lets the work on all jobs end where it is, and waits for that.
    pub async fn pause(&self) {
        // Again and again: one that ends may have begun the one that follows it.
        loop {
            let senders: Vec<_> = self.at_work().values().cloned().collect();
            if senders.is_empty() {
                return;
            }
            for sender in senders {
                sender.send_replace(Order::Pause);
                sender.closed().await;
            }
            // Whoever has panicked has left its own.
            self.at_work().retain(|_, sender| !sender.is_closed());
        }
    }

    async fn row(&self, job: JobId) -> Result<JobRow, JobError> {
        let row = self.vault.catalog().job(job).await?;
        Ok(row.ok_or_else(|| crate::vault::unknown("job", &job.to_string(), Vec::new()))?)
    }

    fn at_work(&self) -> std::sync::MutexGuard<'_, BTreeMap<JobId, watch::Sender<Order>>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
