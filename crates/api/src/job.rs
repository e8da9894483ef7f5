use jiff::Timestamp;
use lifeboat_model::{JobId, PointId, ServerId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::DrillReport;

/// Something that an operator started and that goes on, step by step, whatever happens to the vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its id.
    #[schema(value_type = String)]
    pub id: JobId,
    /// The server that it is about.
    #[schema(value_type = String)]
    pub server: ServerId,
    /// That server's name.
    pub server_name: String,
    /// What it does.
    pub kind: JobKind,
    /// How far it is.
    pub state: JobState,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub begun: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended: Option<Timestamp>,
    /// One sentence about the end; when it failed, with what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The recovery point that it uses, once it is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub point: Option<PointId>,
    /// Its steps, in their order.
    pub steps: Vec<JobStep>,
    /// What a drill has shown, or a failover whose machine did not come up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<DrillReport>,
    /// The job that began when this one was done: after a commit, the copying of the disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next: Option<JobId>,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Starts a copy in isolation, sees whether it comes up, and removes it unless it is to be kept.
    Drill,
    /// Removes the copy of a drill.
    CleanUp,
    /// Starts the copy that takes over from the source.
    Failover,
    /// Stops the source after its last write, and starts the copy that takes over.
    PlannedFailover,
    /// Starts that copy anew from another recovery point.
    ChangePoint,
    /// Makes a failover final.
    Commit,
    /// Copies the disks of a machine that took over to the recovery site's storage.
    Hydrate,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It goes on.
    Running,
    /// What it made is being removed.
    RollingBack,
    /// It did what was asked.
    Done,
    /// A step failed. It stands where it is and can be retried or cancelled, if it was not rolled back.
    Failed,
    /// It was cancelled, and what it had made is gone.
    Cancelled,
}

/// A step of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobStep {
    /// What it does, in a few words.
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// How often it was begun.
    pub attempts: u32,
    /// When it was begun last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub begun: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended: Option<Timestamp>,
    /// What it found, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Its turn has not come.
    Waiting,
    /// It is at work.
    Running,
    /// Done.
    Done,
    /// It failed.
    Failed,
    /// What it had made is gone.
    Undone,
}
