//! The paths of the requests, in one place for both of their ends.

/// Requests of an agent to its process server.
pub mod agent_path {
    use lifeboat_model::{DiskNumber, Epoch, Part};

    /// `POST`: [`crate::agent::AgentReport`], answered with no content.
    pub const REPORT: &str = "/v1/agent/report";
    /// `GET ?seen=REVISION&wait_ms=N`: [`crate::agent::Assignment`], held back until it differs from `seen`.
    pub const ASSIGNMENT: &str = "/v1/agent/assignment";
    /// `POST ?writer=LIFE`: [`crate::agent::SealPoint`], answered with [`crate::agent::SealReceipt`].
    pub const POINTS: &str = "/v1/agent/points";
    /// `PUT`: [`crate::agent::DescribeDisk`], answered with [`crate::agent::DiskState`].
    pub const DISK: &str = "/v1/agent/disks/{disk}";
    /// `PUT ?writer=LIFE`: a part of an epoch as a [`crate::stream`], answered with [`crate::agent::PartReceipt`].
    pub const PART: &str = "/v1/agent/disks/{disk}/epochs/{epoch}/parts/{part}";
    /// `POST`: [`crate::agent::DigestRequest`], answered with digests of 16 bytes each, in order.
    pub const DIGESTS: &str = "/v1/agent/disks/{disk}/digests";
    /// `POST`: [`crate::agent::RequestResult`], answered with no content.
    pub const RESULTS: &str = "/v1/agent/results";
    /// `PUT`: [`crate::facts::ServerFacts`], answered with no content when the vault has them.
    pub const FACTS: &str = "/v1/agent/facts";

    /// [`DISK`] of one disk.
    #[must_use]
    pub fn disk(disk: DiskNumber) -> String {
        format!("/v1/agent/disks/{disk}")
    }

    /// [`PART`] of one part.
    #[must_use]
    pub fn part(disk: DiskNumber, epoch: Epoch, part: Part) -> String {
        format!("/v1/agent/disks/{disk}/epochs/{epoch}/parts/{part}")
    }

    /// [`DIGESTS`] of one disk.
    #[must_use]
    pub fn digests(disk: DiskNumber) -> String {
        format!("/v1/agent/disks/{disk}/digests")
    }
}

/// Requests of a process server to the vault.
pub mod process_server_path {
    use lifeboat_model::{DiskNumber, ServerId};

    /// `POST`: [`crate::process_server::ProcessServerReport`], answered with [`crate::process_server::VaultHello`].
    pub const REPORT: &str = "/v1/process-server/report";
    /// `GET ?seen=REVISION&wait_ms=N`: [`crate::process_server::Assignments`], held back until it differs from `seen`.
    pub const ASSIGNMENTS: &str = "/v1/process-server/assignments";
    /// `PUT`: [`crate::process_server::RegisterDisk`], answered with [`crate::process_server::DiskRegistration`].
    pub const DISK: &str = "/v1/process-server/servers/{server}/disks/{disk}";
    /// `POST`: [`crate::process_server::DigestRequest`], answered with digests of 16 bytes each, in order.
    pub const DIGESTS: &str = "/v1/process-server/servers/{server}/disks/{disk}/digests";
    /// `POST`: [`crate::process_server::GrantRequest`], answered with [`crate::process_server::Grant`].
    pub const GRANTS: &str = "/v1/process-server/grants";
    /// `POST`: [`crate::process_server::CommitPoint`], answered with [`crate::process_server::CommitReceipt`].
    pub const POINTS: &str = "/v1/process-server/points";
    /// `POST`: a list of [`crate::event::Event`], answered with no content.
    pub const EVENTS: &str = "/v1/process-server/events";
    /// `POST`: [`crate::process_server::ServerResult`], answered with no content.
    pub const RESULTS: &str = "/v1/process-server/results";
    /// `PUT`: [`crate::facts::ServerFacts`], answered with no content.
    pub const FACTS: &str = "/v1/process-server/servers/{server}/facts";
    /// `PUT`: the bytes of one object; the vault's own endpoint for a granted upload.
    pub const OBJECT: &str = "/v1/objects/{token}";

    /// [`DISK`] of one disk.
    #[must_use]
    pub fn disk(server: ServerId, disk: DiskNumber) -> String {
        format!("/v1/process-server/servers/{server}/disks/{disk}")
    }

    /// [`FACTS`] of one server.
    #[must_use]
    pub fn facts(server: ServerId) -> String {
        format!("/v1/process-server/servers/{server}/facts")
    }

    /// [`DIGESTS`] of one disk.
    #[must_use]
    pub fn digests(server: ServerId, disk: DiskNumber) -> String {
        format!("/v1/process-server/servers/{server}/disks/{disk}/digests")
    }
}
