//! The vault's REST API for programs in Rust: what the command line speaks.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lifeboat_api::{
    AcknowledgeEvents, AcknowledgedEvents, ChangePoint, CleanUp, Console, CreateNetwork, DrillSchedule,
    Event, Failover, Hydrate, Job, JobState, Machine, Network, NetworkMapping, OpenVolume, OpenedVolume,
    PlannedFailover, Point, Policy, Readiness, Request, ScheduleDrills, Server, SshKey, Status, StopMachine,
    TakePoint, Target, TargetSettings, TestFailover, Verify, VerifyKind, Volume,
};
use lifeboat_model::{DiskNumber, PointKind, Span};
use lifeboat_transport::{Call, Client, ClientError, Method};
use lifeboat_trust::{Credentials, TrustError};

/// Bytes of a screenshot that are taken.
const SCREENSHOT_BYTES_MAX: usize = 64 << 20;
/// How much longer an answer may take than it was asked to be held back.
const HOLD_SLACK: Duration = Duration::from_secs(10);

/// A vault could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl VaultError {
    /// Whether the same call can succeed later without anybody mending anything here.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_retryable())
    }
}

type Result<T> = std::result::Result<T, VaultError>;

/// A site's vault.
#[derive(Clone, Debug)]
pub struct Vault {
    client: Client,
}

impl Vault {
    /// The vault at `url`, spoken to with the operator's certificate in `credentials`. Nothing is sent yet.
    ///
    /// # Errors
    /// When the certificate cannot be used or the URL is none.
    pub fn connect(url: &str, credentials: &Path) -> Result<Self> {
        let credentials = Credentials::load(credentials, Timestamp::now())?;
        Ok(Self { client: Client::new(url, &credentials)? })
    }

    /// The state of the site.
    ///
    /// # Errors
    /// When the vault cannot be asked or refuses; so for all that follow.
    pub async fn status(&self) -> Result<Status> {
        Ok(self.client.get("/v1/status").await?)
    }

    /// All protected servers.
    #[allow(clippy::missing_errors_doc)]
    pub async fn servers(&self) -> Result<Vec<Server>> {
        Ok(self.client.get("/v1/servers").await?)
    }

    /// One server, by name, id or unique beginning of one.
    #[allow(clippy::missing_errors_doc)]
    pub async fn server(&self, server: &str) -> Result<Server> {
        Ok(self.client.get(&of_server(server, "")).await?)
    }

    /// Changes a server's policy; answers the server.
    #[allow(clippy::missing_errors_doc)]
    pub async fn set_policy(&self, server: &str, policy: &Policy) -> Result<Server> {
        Ok(self.client.put(&of_server(server, "/policy"), policy).await?)
    }

    /// Takes a disk out of protection; points that have it stay.
    #[allow(clippy::missing_errors_doc)]
    pub async fn remove_disk(&self, server: &str, disk: DiskNumber) -> Result<()> {
        let path = of_server(server, &format!("/disks/{disk}"));
        Ok(self.client.call(Method::DELETE, &path).send().await?)
    }

    /// The recovery points of a server, newest first; at most `limit`.
    #[allow(clippy::missing_errors_doc)]
    pub async fn points(&self, server: &str, limit: Option<u32>) -> Result<Vec<Point>> {
        let query: Vec<_> = limit.into_iter().map(|limit| ("limit", limit)).collect();
        Ok(self.client.call(Method::GET, &of_server(server, "/points")).query(&query).send().await?)
    }

    /// Asks for a recovery point now.
    #[allow(clippy::missing_errors_doc)]
    pub async fn take_point(&self, server: &str, kind: PointKind) -> Result<Request> {
        Ok(self.client.post(&of_server(server, "/points"), &TakePoint { kind }).await?)
    }

    /// Asks for a resync of all disks.
    #[allow(clippy::missing_errors_doc)]
    pub async fn resync(&self, server: &str) -> Result<Request> {
        Ok(self.client.call(Method::POST, &of_server(server, "/resync")).send().await?)
    }

    /// Asks for a verification.
    #[allow(clippy::missing_errors_doc)]
    pub async fn verify(&self, server: &str, kind: VerifyKind) -> Result<Request> {
        Ok(self.client.post(&of_server(server, "/verify"), &Verify { kind }).await?)
    }

    /// A request by its id; its end is waited for up to `hold`, at most 25 s.
    #[allow(clippy::missing_errors_doc)]
    pub async fn request(&self, id: &str, hold: Duration) -> Result<Request> {
        let path = format!("/v1/requests/{}", escape(id));
        let wait_ms = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        let call: Call = self.client.call(Method::GET, &path).query(&[("wait_ms", wait_ms)]);
        Ok(call.timeout(hold + HOLD_SLACK).send().await?)
    }

    /// Opens disks of a point.
    #[allow(clippy::missing_errors_doc)]
    pub async fn open_volume(&self, server: &str, open: &OpenVolume) -> Result<OpenedVolume> {
        Ok(self.client.post(&of_server(server, "/volumes"), open).await?)
    }

    /// Open volumes.
    #[allow(clippy::missing_errors_doc)]
    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        Ok(self.client.get("/v1/volumes").await?)
    }

    /// Closes a volume, by id or unique beginning of one.
    #[allow(clippy::missing_errors_doc)]
    pub async fn close_volume(&self, volume: &str, force: bool) -> Result<()> {
        let path = format!("/v1/volumes/{}", escape(volume));
        Ok(self.client.call(Method::DELETE, &path).query(&[("force", force)]).send().await?)
    }

    /// Starts a drill.
    #[allow(clippy::missing_errors_doc)]
    pub async fn test_failover(&self, server: &str, test: &TestFailover) -> Result<Job> {
        Ok(self.client.post(&of_server(server, "/failover/test"), test).await?)
    }

    /// Ends a drill.
    #[allow(clippy::missing_errors_doc)]
    pub async fn clean_up(&self, server: &str, clean_up: &CleanUp) -> Result<Job> {
        Ok(self.client.post(&of_server(server, "/failover/cleanup"), clean_up).await?)
    }

    /// Starts the copy that takes over.
    #[allow(clippy::missing_errors_doc)]
    pub async fn failover(&self, server: &str, failover: &Failover) -> Result<Job> {
        Ok(self.client.post(&of_server(server, "/failover"), failover).await?)
    }

    /// Has the source stop after its last write, and starts the copy that takes over.
    #[allow(clippy::missing_errors_doc)]
    pub async fn planned_failover(&self, server: &str, planned: &PlannedFailover) -> Result<Job> {
        Ok(self.client.post(&of_server(server, "/failover/planned"), planned).await?)
    }

    /// Starts that copy anew from another point.
    #[allow(clippy::missing_errors_doc)]
    pub async fn change_point(&self, server: &str, change: &ChangePoint) -> Result<Job> {
        Ok(self.client.post(&of_server(server, "/failover/change-point"), change).await?)
    }

    /// Makes a failover final.
    #[allow(clippy::missing_errors_doc)]
    pub async fn commit_failover(&self, server: &str) -> Result<Job> {
        Ok(self.client.call(Method::POST, &of_server(server, "/failover/commit")).send().await?)
    }

    /// Copies the disks of a machine that took over to the recovery site's storage.
    #[allow(clippy::missing_errors_doc)]
    pub async fn hydrate(&self, server: &str, hydrate: &Hydrate) -> Result<Job> {
        Ok(self.client.post(&of_server(server, "/machine/hydrate"), hydrate).await?)
    }

    /// Servers that the vault drills by itself, the one that is due first at first.
    #[allow(clippy::missing_errors_doc)]
    pub async fn drill_schedules(&self) -> Result<Vec<DrillSchedule>> {
        Ok(self.client.get("/v1/drills").await?)
    }

    /// Lets the vault drill a server regularly.
    #[allow(clippy::missing_errors_doc)]
    pub async fn schedule_drills(&self, server: &str, every: Span) -> Result<DrillSchedule> {
        Ok(self.client.put(&of_server(server, "/drills"), &ScheduleDrills { every }).await?)
    }

    /// Lets the vault drill a server no more by itself.
    #[allow(clippy::missing_errors_doc)]
    pub async fn stop_drills(&self, server: &str) -> Result<()> {
        Ok(self.client.call(Method::DELETE, &of_server(server, "/drills")).send().await?)
    }

    /// Networks at the recovery site, by name.
    #[allow(clippy::missing_errors_doc)]
    pub async fn networks(&self) -> Result<Vec<Network>> {
        Ok(self.client.get("/v1/networks").await?)
    }

    /// One network, by name, id or unique beginning of one.
    #[allow(clippy::missing_errors_doc)]
    pub async fn network(&self, network: &str) -> Result<Network> {
        Ok(self.client.get(&format!("/v1/networks/{}", escape(network))).await?)
    }

    /// Makes a network.
    #[allow(clippy::missing_errors_doc)]
    pub async fn create_network(&self, create: &CreateNetwork) -> Result<Network> {
        Ok(self.client.post("/v1/networks", create).await?)
    }

    /// Deletes a network that nothing uses.
    #[allow(clippy::missing_errors_doc)]
    pub async fn delete_network(&self, network: &str) -> Result<()> {
        let path = format!("/v1/networks/{}", escape(network));
        Ok(self.client.call(Method::DELETE, &path).send().await?)
    }

    /// Which networks stand in for those of the protected site.
    #[allow(clippy::missing_errors_doc)]
    pub async fn network_mappings(&self) -> Result<Vec<NetworkMapping>> {
        Ok(self.client.get("/v1/network-mappings").await?)
    }

    /// Sets which networks stand in for one of the protected site; answers all mappings.
    #[allow(clippy::missing_errors_doc)]
    pub async fn map_network(&self, mapping: &NetworkMapping) -> Result<Vec<NetworkMapping>> {
        Ok(self.client.put("/v1/network-mappings", mapping).await?)
    }

    /// Jobs, newest first.
    #[allow(clippy::missing_errors_doc)]
    pub async fn jobs(&self, server: Option<&str>, limit: u32) -> Result<Vec<Job>> {
        let limit = limit.to_string();
        let query = [("server", server), ("limit", Some(&limit))];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Ok(self.client.call(Method::GET, "/v1/jobs").query(&query).send().await?)
    }

    /// One job, by id or unique beginning of one.
    #[allow(clippy::missing_errors_doc)]
    pub async fn job(&self, job: &str) -> Result<Job> {
        Ok(self.client.get(&of_job(job, "")).await?)
    }

    /// Ends a job and removes what it has made.
    #[allow(clippy::missing_errors_doc)]
    pub async fn cancel_job(&self, job: &str) -> Result<Job> {
        Ok(self.client.call(Method::POST, &of_job(job, "/cancel")).send().await?)
    }

    /// Goes on with a job that failed.
    #[allow(clippy::missing_errors_doc)]
    pub async fn retry_job(&self, job: &str) -> Result<Job> {
        Ok(self.client.call(Method::POST, &of_job(job, "/retry")).send().await?)
    }

    /// Every server's machine at the recovery site.
    #[allow(clippy::missing_errors_doc)]
    pub async fn machines(&self) -> Result<Vec<Machine>> {
        Ok(self.client.get("/v1/machines").await?)
    }

    /// A server's machine at the recovery site.
    #[allow(clippy::missing_errors_doc)]
    pub async fn machine(&self, server: &str) -> Result<Machine> {
        Ok(self.client.get(&of_server(server, "/machine")).await?)
    }

    /// Starts a server's machine that is off.
    #[allow(clippy::missing_errors_doc)]
    pub async fn start_machine(&self, server: &str) -> Result<Machine> {
        let path = of_server(server, "/machine/start");
        Ok(self.client.call(Method::POST, &path).send().await?)
    }

    /// Stops a server's machine until it is started again; does not wait for its guest.
    #[allow(clippy::missing_errors_doc)]
    pub async fn stop_machine(&self, server: &str, stop: &StopMachine) -> Result<Machine> {
        Ok(self.client.post(&of_server(server, "/machine/stop"), stop).await?)
    }

    /// What a server's machine has written to its serial console, from an offset in bytes.
    #[allow(clippy::missing_errors_doc)]
    pub async fn console(&self, server: &str, from: u64) -> Result<Console> {
        let path = of_server(server, "/machine/console");
        Ok(self.client.call(Method::GET, &path).query(&[("from", from)]).send().await?)
    }

    /// Types on the serial console of a server's machine; done when its guest has read it.
    #[allow(clippy::missing_errors_doc)]
    pub async fn write_console(&self, server: &str, input: Bytes) -> Result<()> {
        let path = of_server(server, "/machine/console");
        Ok(self.client.call(Method::POST, &path).bytes(input).send().await?)
    }

    /// The screen of a server's machine, as PNG.
    #[allow(clippy::missing_errors_doc)]
    pub async fn screenshot(&self, server: &str) -> Result<Vec<u8>> {
        let path = of_server(server, "/machine/screenshot");
        Ok(self.client.call(Method::GET, &path).send_for_bytes(SCREENSHOT_BYTES_MAX).await?.to_vec())
    }

    /// How a server's machine is to look.
    #[allow(clippy::missing_errors_doc)]
    pub async fn target(&self, server: &str) -> Result<Target> {
        Ok(self.client.get(&of_server(server, "/target")).await?)
    }

    /// Sets how a server's machine is to look the next time it is started; what is absent comes from its facts.
    #[allow(clippy::missing_errors_doc)]
    pub async fn set_target(&self, server: &str, target: &TargetSettings) -> Result<Target> {
        Ok(self.client.put(&of_server(server, "/target"), target).await?)
    }

    /// The key with which the vault logs in to servers' machines.
    #[allow(clippy::missing_errors_doc)]
    pub async fn ssh_key(&self) -> Result<SshKey> {
        Ok(self.client.get("/v1/ssh-key").await?)
    }

    /// Whether a server would start at the recovery site.
    #[allow(clippy::missing_errors_doc)]
    pub async fn readiness(&self, server: &str) -> Result<Readiness> {
        Ok(self.client.get(&of_server(server, "/readiness")).await?)
    }

    /// Waits until a job has ended, telling each new state of it to `progress`; a vault that
    /// restarts meanwhile is waited for.
    #[allow(clippy::missing_errors_doc)]
    pub async fn wait_for_job(&self, job: &Job, mut progress: impl FnMut(&Job)) -> Result<Job> {
        const LOOK: Duration = Duration::from_millis(500);
        let mut job = job.clone();
        let path = of_job(&job.id.to_string(), "");
        loop {
            progress(&job);
            if !matches!(job.state, JobState::Running | JobState::RollingBack) {
                return Ok(job);
            }
            tokio::time::sleep(LOOK).await;
            match self.client.get(&path).await {
                Ok(answer) => job = answer,
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Events, newest first; at least of `severity`.
    #[allow(clippy::missing_errors_doc)]
    pub async fn events(
        &self,
        server: Option<&str>,
        severity: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Event>> {
        let limit = limit.to_string();
        let query = [("server", server), ("severity", severity), ("limit", Some(&limit))];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Ok(self.client.call(Method::GET, "/v1/events").query(&query).send().await?)
    }

    /// Notes that events were seen to.
    #[allow(clippy::missing_errors_doc)]
    pub async fn acknowledge(&self, events: &AcknowledgeEvents) -> Result<AcknowledgedEvents> {
        Ok(self.client.post("/v1/events/acknowledge", events).await?)
    }
}

fn of_job(job: &str, rest: &str) -> String {
    format!("/v1/jobs/{}{rest}", escape(job))
}

fn of_server(server: &str, rest: &str) -> String {
    format!("/v1/servers/{}{rest}", escape(server))
}

/// A name as one segment of a path (RFC 3986): everything but unreserved characters is escaped.
fn escape(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment_of_the_path() {
        assert_eq!(of_server("db 1/ü", "/points"), "/v1/servers/db%201%2F%C3%BC/points");
    }
}
