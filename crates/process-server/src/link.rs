//! What a process server asks of the vault.

use std::future::Future;
use std::path::Path;

use bytes::Bytes;
use futures::stream::BoxStream;
use lifeboat_model::{DiskNumber, ServerId};
use lifeboat_wire::event::Event;
use lifeboat_wire::facts::ServerFacts;
use lifeboat_wire::process_server::{
    Assignments, CommitPoint, CommitReceipt, DigestRequest, DiskRegistration, Grant, GrantRequest,
    ProcessServerReport, RegisterDisk, ServerResult, VaultHello,
};

/// Why the vault did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// There was no answer.
    #[error("the vault cannot be reached: {0}")]
    Unreachable(String),
    /// It answered that it cannot now.
    #[error("the vault cannot do it now: {0}")]
    NotNow(String),
    /// It answered no. The same request will be refused again until somebody does something.
    #[error("the vault refused it ({status}, {code}): {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The stable word for it.
        code: String,
        /// Its sentence.
        message: String,
    },
}

impl LinkError {
    /// Whether the same request can succeed later without anybody's doing.
    #[must_use]
    pub const fn retry_helps(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}

/// Asked before each piece of an upload is sent.
pub trait Pace: Send + Sync {
    /// Returns when `bytes` may be sent.
    fn wait(&self, bytes: u64) -> impl Future<Output = ()> + Send;
}

/// The vault as a process server sees it. The real one speaks HTTP; tests have one in memory.
pub trait VaultLink: Send + Sync + 'static {
    /// Makes the vault know a disk.
    fn register_disk(
        &self,
        server: ServerId,
        disk: DiskNumber,
        request: &RegisterDisk,
    ) -> impl Future<Output = Result<DiskRegistration, LinkError>> + Send;

    /// Asks for leave to upload a file.
    fn grant(&self, request: &GrantRequest) -> impl Future<Output = Result<Grant, LinkError>> + Send;

    /// Uploads a file of `bytes` bytes to where the grant says.
    fn upload<P: Pace + 'static>(
        &self,
        grant: &Grant,
        file: &Path,
        bytes: u64,
        pace: P,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Makes a point exist.
    fn commit(&self, point: &CommitPoint) -> impl Future<Output = Result<CommitReceipt, LinkError>> + Send;

    /// Digests of the copy, as they come.
    fn digests(
        &self,
        server: ServerId,
        disk: DiskNumber,
        request: &DigestRequest,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<Bytes, LinkError>>, LinkError>> + Send;

    /// Reports the state of this process server.
    fn report(
        &self,
        report: &ProcessServerReport,
    ) -> impl Future<Output = Result<VaultHello, LinkError>> + Send;

    /// What the agents are to do, as soon as it differs from revision `seen`.
    fn assignments(&self, seen: Option<u64>) -> impl Future<Output = Result<Assignments, LinkError>> + Send;

    /// Hands over events.
    fn events(&self, events: &[Event]) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Hands over what an agent has found out about its server.
    fn facts(
        &self,
        server: ServerId,
        facts: &ServerFacts,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Hands over the result of a command.
    fn result(&self, result: &ServerResult) -> impl Future<Output = Result<(), LinkError>> + Send;
}
