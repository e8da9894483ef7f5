//! What jobs there are, and of which steps they consist.

use jiff::Timestamp;
use lifeboat_api::{JobKind, ProbeResult};
use lifeboat_compute::{DiskFormat, MachineSpec};
use lifeboat_model::{JobId, MachineId, PointId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::catalog::RecoveryRow;
use crate::error::VaultError;
use crate::overview::LATEST;
use crate::random::{self, Randomness};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobRequest {
    /// A drill.
    Drill {
        /// From which point.
        point: String,
        /// The copy stays.
        keep: bool,
        /// The network that it joins, when that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<String>,
    },
    /// The end of a drill.
    CleanUp {
        /// What it has shown, in an operator's words.
        note: Option<String>,
    },
    /// The copy takes over.
    Failover {
        /// From which point.
        point: String,
        /// The network that it joins, when that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<String>,
    },
    /// The source stands down, and the copy takes over with its last write.
    PlannedFailover {
        /// The network that it joins, when that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<String>,
    },
    /// The copy that took over begins anew.
    ChangePoint {
        /// From which point.
        point: String,
    },
    /// The failover is final.
    Commit,
    /// The disks of the copy that took over are copied to this site, and it goes on with the copies.
    Hydrate {
        /// How the copies are kept.
        format: DiskFormat,
        /// At most so many bytes a second for each disk; as fast as it goes if none.
        bytes_per_second: Option<u64>,
    },
}

/// What a step does. [`super::steps`] does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Asks the source for a last point, and waits for it.
    LastPoint,
    /// Has the source stop its services and give the point after its last write.
    StandDown,
    /// Takes the server's history from its source.
    Fence,
    /// Chooses the recovery point.
    ChoosePoint,
    /// Opens the point as a volume that can be written.
    OpenVolume,
    /// Removes the machine that there was.
    RemoveFormerMachine,
    /// Makes and starts the machine.
    StartMachine,
    /// Closes the volume of the machine that there was.
    CloseFormerVolume,
    /// Waits until the machine is up.
    AwaitUp,
    /// Tells what a drill has shown.
    Report,
    /// Removes the machine.
    RemoveMachine,
    /// Closes the volume.
    CloseVolume,
    /// Lets the source know that the copy has taken over.
    Retire,
    /// Makes the failover final.
    Commit,
    /// Copies the disks, and moves the machine over to the copies.
    CopyDisks,
    /// Closes the volume that the machine no longer uses.
    ReleaseVolume,
}

/// What the steps of a job have found and made so far, and the ids of what they will make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// The machine.
    pub machine: MachineId,
    /// Its volume.
    pub volume: VolumeId,
    /// The machine that there was before.
    #[serde(default)]
    pub former: Option<(MachineId, VolumeId)>,
    /// The recovery point and its time T.
    #[serde(default)]
    pub point: Option<(PointId, Timestamp)>,
    /// The machine as it is to be started.
    #[serde(default)]
    pub spec: Option<MachineSpec>,
    /// What ran it.
    #[serde(default)]
    pub compute: String,
    /// When its first instruction ran.
    #[serde(default)]
    pub first_instruction: Option<Timestamp>,
    /// Since when it is waited for, if an operator has it waited for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaited_since: Option<Timestamp>,
    /// Whether it came up, and why that is said.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// What shows that no write was lost; one sentence.
    #[serde(default)]
    pub nothing_lost: Option<String>,
    /// The job that begins when this one is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
}

/// A job that follows another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// Its id.
    pub job: JobId,
    /// What it is to do.
    pub request: JobRequest,
}

/// Whether a machine came up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// It did.
    pub up: bool,
    /// It went off before.
    #[serde(default)]
    pub is_off: bool,
    /// One sentence.
    pub sentence: String,
    /// Each probe.
    pub probes: Vec<ProbeResult>,
    /// From the first instruction until it was up, in milliseconds.
    pub boot_ms: Option<u64>,
}

impl Work {
    /// For a job that begins. What works on the machine that there is gets that one's ids.
    pub(super) fn new(
        randomness: &dyn Randomness,
        recovery: Option<&RecoveryRow>,
    ) -> Result<Self, VaultError> {
        Ok(Self {
            machine: MachineId::new(random::number(randomness)?),
            volume: VolumeId::new(random::number(randomness)?),
            former: recovery.map(|recovery| (recovery.machine, recovery.volume)),
            point: None,
            spec: None,
            compute: String::new(),
            first_instruction: None,
            awaited_since: None,
            verdict: None,
            nothing_lost: None,
            next: None,
        })
    }
}

impl JobRequest {
    /// A drill that leaves nothing behind.
    #[must_use]
    pub fn drill(point: &str) -> Self {
        Self::Drill { point: point.to_owned(), keep: false, network: None }
    }

    /// Its steps, in their order.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        use Step::{
            AwaitUp, ChoosePoint, CloseFormerVolume, CloseVolume, Commit, CopyDisks, Fence, LastPoint,
            OpenVolume, ReleaseVolume, RemoveFormerMachine, RemoveMachine, Report, Retire, StandDown,
            StartMachine,
        };
        match self {
            Self::Drill { keep: true, .. } => vec![ChoosePoint, OpenVolume, StartMachine, AwaitUp, Report],
            Self::Drill { keep: false, .. } => {
                vec![ChoosePoint, OpenVolume, StartMachine, AwaitUp, Report, RemoveMachine, CloseVolume]
            }
            Self::CleanUp { .. } => vec![RemoveFormerMachine, CloseFormerVolume],
            Self::Failover { point, .. } if point == "latest" => {
                vec![LastPoint, Fence, ChoosePoint, OpenVolume, StartMachine, AwaitUp]
            }
            Self::Failover { .. } => vec![Fence, ChoosePoint, OpenVolume, StartMachine, AwaitUp],
            Self::PlannedFailover { .. } => {
                vec![StandDown, Fence, ChoosePoint, OpenVolume, StartMachine, AwaitUp, Retire]
            }
            // The new volume first: where it cannot be opened, the machine that runs stays as it is.
            Self::ChangePoint { .. } => {
                vec![ChoosePoint, OpenVolume, RemoveFormerMachine, StartMachine, CloseFormerVolume, AwaitUp]
            }
            Self::Commit => vec![Commit],
            Self::Hydrate { .. } => vec![CopyDisks, ReleaseVolume],
        }
    }

    /// The step from whose beginning on the job cannot be cancelled any more; none when it always can.
    ///
    /// A machine that took over may have done something that somebody relies on; and what was
    /// removed does not come back.
    #[must_use]
    pub const fn point_of_no_return(&self) -> Option<Step> {
        match self {
            Self::Drill { .. } => None,
            Self::Failover { .. } => Some(Step::StartMachine),
            // Until then the source stands by with everything, and nobody was told to use the copy.
            Self::PlannedFailover { .. } => Some(Step::Retire),
            Self::CleanUp { .. } | Self::ChangePoint { .. } => Some(Step::RemoveFormerMachine),
            Self::Commit => Some(Step::Commit),
            Self::Hydrate { .. } => Some(Step::ReleaseVolume),
        }
    }

    /// Whether it is rolled back by itself when a step fails: then everything is as before.
    #[must_use]
    pub const fn rolls_back(&self) -> bool {
        matches!(self, Self::Drill { .. } | Self::PlannedFailover { .. })
    }

    /// The point as an operator named it; `None` when it is the newest one.
    #[must_use]
    pub fn named_point(&self) -> Option<&str> {
        self.point().filter(|point| !LATEST.contains(point))
    }

    /// The point as an operator asked for it.
    pub(super) fn point(&self) -> Option<&str> {
        match self {
            Self::Drill { point, .. } | Self::Failover { point, .. } | Self::ChangePoint { point } => {
                Some(point)
            }
            Self::CleanUp { .. } | Self::PlannedFailover { .. } | Self::Commit | Self::Hydrate { .. } => None,
        }
    }

    /// Whether a machine comes to be where there is none.
    pub(super) const fn makes_machine(&self) -> bool {
        matches!(self, Self::Drill { .. } | Self::Failover { .. } | Self::PlannedFailover { .. })
    }

    /// Whether the machine that there is begins or ends with it. Others go on with the machine as it is.
    pub(super) const fn starts_or_removes(&self) -> bool {
        !matches!(self, Self::Commit | Self::Hydrate { .. })
    }

    /// The network that the machine is to join, when that was said.
    pub(super) fn network(&self) -> Option<&str> {
        match self {
            Self::Drill { network, .. }
            | Self::Failover { network, .. }
            | Self::PlannedFailover { network } => network.as_deref(),
            Self::CleanUp { .. } | Self::ChangePoint { .. } | Self::Commit | Self::Hydrate { .. } => None,
        }
    }

    /// What it is for operators.
    #[must_use]
    pub const fn kind(&self) -> JobKind {
        match self {
            Self::Drill { .. } => JobKind::Drill,
            Self::CleanUp { .. } => JobKind::CleanUp,
            Self::Failover { .. } => JobKind::Failover,
            Self::PlannedFailover { .. } => JobKind::PlannedFailover,
            Self::ChangePoint { .. } => JobKind::ChangePoint,
            Self::Commit => JobKind::Commit,
            Self::Hydrate { .. } => JobKind::Hydrate,
        }
    }

    /// What it does, to complete "a job is under way: …".
    #[must_use]
    pub const fn sentence(&self) -> &'static str {
        match self {
            Self::Drill { .. } => "a test failover",
            Self::CleanUp { .. } => "the clean-up of a drill",
            Self::Failover { .. } => "a failover",
            Self::PlannedFailover { .. } => "a planned failover",
            Self::ChangePoint { .. } => "a change of the recovery point",
            Self::Commit => "the commit of a failover",
            Self::Hydrate { .. } => "the copying of a machine's disks",
        }
    }
}

impl Step {
    /// What it does, in a few words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LastPoint => "ask the source for a last point",
            Self::StandDown => "let the source stand down",
            Self::Fence => "take the history from the source",
            Self::ChoosePoint => "choose the recovery point",
            Self::OpenVolume => "open it as a volume",
            Self::RemoveFormerMachine => "remove the machine that there was",
            Self::StartMachine => "start the machine",
            Self::CloseFormerVolume => "close the volume that there was",
            Self::AwaitUp => "wait until the machine is up",
            Self::Report => "write the report",
            Self::RemoveMachine => "remove the machine",
            Self::CloseVolume => "close the volume",
            Self::Retire => "let the source know",
            Self::Commit => "make the failover final",
            Self::CopyDisks => "copy the disks to this site",
            Self::ReleaseVolume => "close the volume",
        }
    }
}
