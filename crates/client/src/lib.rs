//! The vault's REST API for programs in Rust: what the command line speaks.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_api::{
    Event, OpenVolume, OpenedVolume, Point, Policy, Request, RequestState, Server, Status, TakePoint, Verify,
    VerifyKind, Volume,
};
use lifeboat_model::{DiskNumber, PointKind};
use lifeboat_transport::{Call, Client, ClientError, Method};
use lifeboat_trust::{Credentials, TrustError};

/// How long one question about a request is held back by the vault.
const WAIT: Duration = Duration::from_secs(20);
/// How much longer than that its answer may take.
const WAIT_SLACK: Duration = Duration::from_secs(10);

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

    /// One server, by name, id or unique beginning of an id.
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

    /// The recovery points of a server, newest first.
    #[allow(clippy::missing_errors_doc)]
    pub async fn points(&self, server: &str) -> Result<Vec<Point>> {
        Ok(self.client.get(&of_server(server, "/points")).await?)
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

    /// Waits until a request has ended; a vault that restarts meanwhile is waited for.
    #[allow(clippy::missing_errors_doc)]
    pub async fn wait(&self, request: &Request) -> Result<Request> {
        let mut request = request.clone();
        let path = format!("/v1/requests/{}", escape(&request.id));
        let wait_ms = u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX);
        while request.state == RequestState::Running {
            let call: Call = self.client.call(Method::GET, &path).query(&[("wait_ms", wait_ms)]);
            match call.timeout(WAIT + WAIT_SLACK).send().await {
                Ok(answer) => request = answer,
                Err(error) if error.is_retryable() => tokio::time::sleep(Duration::from_secs(1)).await,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(request)
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
