//! The bodies of the vault's REST API, as an operator's programs see them.
//!
//! The command line's `--output json` prints these same shapes. Fields are only ever added.
//! Identifiers are 16 hexadecimal digits, times RFC 3339, sizes bytes, spans of time texts such as
//! `5s`.

mod disk_point;
mod drill;
mod facts;
mod job;
mod network;
mod recovery;
mod server;
mod site;
mod volume;

pub use disk_point::{ExportFormat, Point, PointDisk, TakePoint};
pub use drill::{DrillSchedule, ScheduleDrills};
pub use facts::{Facts, Finding, Interface, Readiness, ReadinessVerdict};
pub use job::{Job, JobKind, JobState, JobStep, StepState};
pub use network::{CreateNetwork, Network, NetworkKind, NetworkMapping, NetworkMember};
pub use recovery::{
    ChangePoint, CleanUp, Console, DiskBus, DiskFile, DrillReport, Failover, Firmware, Forward, Hydrate,
    LocalFormat, Machine, MachinePurpose, MachineState, NetworkCard, PlannedFailover, PreviousDrill, Probe,
    ProbeResult, SshKey, StopMachine, Target, TargetSettings, TestFailover,
};
pub use server::{Capture, CopyProgress, Disk, Policy, PolicyRule, Protection, Rpo, Server};
pub use site::{
    AcknowledgeEvents, AcknowledgedEvents, Certificate, ErrorBody, ErrorDetail, Event, EventList,
    ProcessServer, Request, RequestState, Status, Verify, VerifyFault, VerifyKind, VerifyReport,
};
pub use volume::{OpenVolume, OpenedVolume, Volume, VolumeDisk};
