//! The process server, as the agent calls it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use lifeboat_model::{BlockDigest, DiskNumber, Epoch, Part};
use lifeboat_transport::{Client, ClientError, ClientSettings, Method, StatusCode};
use lifeboat_trust::Credentials;
use lifeboat_wire::agent::{
    AgentReport, Assignment, DescribeDisk, DigestRequest, DiskState, PartReceipt, RequestResult, SealPoint,
    SealReceipt,
};
use lifeboat_wire::agent_path;
use lifeboat_wire::facts::ServerFacts;

use crate::engine::Failure;

/// How long the process server may hold back an assignment that did not change.
const ASSIGNMENT_WAIT: Duration = Duration::from_secs(20);

/// How long digests may take: the process server waits for the vault first.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a seal may take: it is one durable write.
const SEAL_TIMEOUT: Duration = Duration::from_secs(60);

/// The process server behind one or more addresses.
#[derive(Debug)]
pub(crate) struct ProcessServer {
    clients: Vec<Client>,
    current: AtomicUsize,
    /// The life of this agent, without which nothing is written.
    writer: u64,
}

impl ProcessServer {
    /// Nothing is called yet.
    pub fn new(urls: &[String], credentials: &Credentials, writer: u64) -> Result<Self, ClientError> {
        let settings = ClientSettings { json_bytes_max: 16 << 20, ..ClientSettings::default() };
        let clients = urls.iter().map(|url| Client::with_settings(url, credentials, settings.clone()));
        Ok(Self { clients: clients.collect::<Result<_, _>>()?, current: AtomicUsize::new(0), writer })
    }

    /// Shows another certificate from now on.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), ClientError> {
        self.clients.iter().try_for_each(|client| client.renew(credentials))
    }

    pub async fn describe(&self, disk: DiskNumber, description: &DescribeDisk) -> Result<DiskState, Failure> {
        let result = self.client().put(&agent_path::disk(disk), description).await;
        self.judged(result)
    }

    /// Sends a part; ends when the process server has acknowledged it.
    pub async fn part<S>(
        &self,
        disk: DiskNumber,
        epoch: Epoch,
        part: Part,
        body: S,
    ) -> Result<PartReceipt, Failure>
    where
        S: Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    {
        let call = self.client().call(Method::PUT, &agent_path::part(disk, epoch, part));
        self.judged(call.query(&[("writer", self.writer)]).stream(body, None).send().await)
    }

    pub async fn seal(&self, seal: &SealPoint) -> Result<SealReceipt, Failure> {
        let call = self.client().call(Method::POST, agent_path::POINTS).query(&[("writer", self.writer)]);
        let call = call.json(seal).timeout(SEAL_TIMEOUT);
        self.judged(call.send().await)
    }

    /// `count` digests, or fewer where the copy ends.
    pub async fn digests(
        &self,
        disk: DiskNumber,
        request: &DigestRequest,
        count: usize,
    ) -> Result<Vec<BlockDigest>, Failure> {
        let call = self
            .client()
            .call(Method::POST, &agent_path::digests(disk))
            .json(request)
            .timeout(DIGEST_TIMEOUT);
        let bytes = self.judged(call.send_for_bytes(count.saturating_mul(16)).await)?;
        if bytes.len() % 16 != 0 {
            return Err(Failure::Away("the process server's list of digests was cut off".into()));
        }
        Ok(bytes.as_chunks::<16>().0.iter().map(|digest| BlockDigest(*digest)).collect())
    }

    pub async fn report(&self, report: &AgentReport) -> Result<(), Failure> {
        let result = self.client().post(agent_path::REPORT, report).await;
        self.judged(result)
    }

    pub async fn facts(&self, facts: &ServerFacts) -> Result<(), Failure> {
        let result = self.client().put(agent_path::FACTS, facts).await;
        self.judged(result)
    }

    pub async fn result(&self, result: &RequestResult) -> Result<(), Failure> {
        let result = self.client().post(agent_path::RESULTS, result).await;
        self.judged(result)
    }

    /// The assignment when it differs from `seen`, or the same one after a while.
    pub async fn assignment(&self, seen: Option<u64>) -> Result<Assignment, Failure> {
        let wait_ms = ASSIGNMENT_WAIT.as_millis();
        let call = self.client().call(Method::GET, agent_path::ASSIGNMENT);
        let call = match seen {
            Some(seen) => call.query(&[("seen", u128::from(seen)), ("wait_ms", wait_ms)]),
            None => call,
        };
        self.judged(call.timeout(ASSIGNMENT_WAIT + Duration::from_secs(20)).send().await)
    }

    fn client(&self) -> &Client {
        &self.clients[self.current.load(Ordering::Relaxed) % self.clients.len()]
    }

    /// Sorts an error, and turns to the next address when this one cannot be reached.
    fn judged<T>(&self, result: Result<T, ClientError>) -> Result<T, Failure> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let message = sentence(&error);
        Err(match error {
            ClientError::Api { status: StatusCode::CONFLICT | StatusCode::NOT_FOUND, .. } => {
                Failure::Conflict(message)
            }
            error if error.is_retryable() || matches!(error, ClientError::Source { .. }) => {
                if matches!(error, ClientError::Unreachable { .. }) {
                    self.current.fetch_add(1, Ordering::Relaxed);
                }
                Failure::Away(message)
            }
            _ => Failure::Refused(message),
        })
    }
}

/// The error without a full stop, to be put into sentences. A host name that a static program
/// cannot look up is what operators will stumble over, so that is said plainly.
fn sentence(error: &ClientError) -> String {
    let text = error.to_string();
    let text = text.trim_end_matches('.').to_owned();
    match error {
        ClientError::Unreachable { reason: lifeboat_transport::UnreachableReason::UnknownHost, .. } => {
            format!("{text}; best name the process server by its address, as https://192.0.2.10:9443")
        }
        _ => text,
    }
}
