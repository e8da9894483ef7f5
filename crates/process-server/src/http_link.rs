//! The vault over HTTP and mutual TLS.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt, TryStreamExt};
use lifeboat_model::{DiskNumber, ServerId};
use lifeboat_transport::{Client, ClientError, Method};
use lifeboat_wire::event::Event;
use lifeboat_wire::facts::ServerFacts;
use lifeboat_wire::process_server::{
    Assignments, CommitPoint, CommitReceipt, DigestRequest, DiskRegistration, Grant, GrantRequest,
    ProcessServerReport, RegisterDisk, ServerResult, VaultHello,
};
use lifeboat_wire::process_server_path as path;

use crate::clock::Clock;
use crate::link::{LinkError, Pace, VaultLink};

/// Bytes that are read and sent at once: each takes a turn on a thread that may block.
const CHUNK_BYTES: usize = 256 << 10;

/// How long the vault holds back assignments that have not changed.
const ASSIGNMENTS_WAIT: Duration = Duration::from_secs(25);

/// The vault as [`Client`] reaches it.
pub(crate) struct HttpLink {
    pub client: Client,
    pub request_timeout: Duration,
    pub stall_timeout: Duration,
    pub clock: Clock,
    /// For uploads to an object store, which knows nothing of the site's certificates.
    pub store: OnceLock<Result<reqwest::Client, String>>,
}

impl HttpLink {
    pub fn new(client: Client, request_timeout: Duration, stall_timeout: Duration, clock: Clock) -> Self {
        Self { client, request_timeout, stall_timeout, clock, store: OnceLock::new() }
    }

    async fn post<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl serde::Serialize + Sync),
    ) -> Result<T, LinkError> {
        let call = self.client.call(Method::POST, path).timeout(self.request_timeout);
        call.json(body).send().await.map_err(link_error)
    }

    fn store(&self) -> Result<&reqwest::Client, LinkError> {
        let build = || {
            // Another part of the program may have chosen it before; it is the same one.
            let _ = rustls::crypto::ring::default_provider().install_default();
            reqwest::Client::builder()
                .connect_timeout(Duration::from_secs(10))
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(|error| error.to_string())
        };
        self.store.get_or_init(build).as_ref().map_err(|error| LinkError::NotNow(error.clone()))
    }

    async fn put_to_store(
        &self,
        grant: &Grant,
        body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        bytes: u64,
    ) -> Result<(), LinkError> {
        let mut request = self.store()?.put(&grant.url).header("content-length", bytes);
        for (name, value) in &grant.headers {
            request = request.header(name, value);
        }
        let answer = request.body(reqwest::Body::wrap_stream(body)).send().await;
        // The address holds a signature, which is nobody's business.
        let answer = answer
            .map_err(|error| LinkError::Unreachable(format!("the object store: {}", error.without_url())))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let text = answer.text().await.unwrap_or_default();
        let message = format!("the object store: {}", text.chars().take(300).collect::<String>());
        if status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
            return Err(LinkError::NotNow(format!("{status}, {message}")));
        }
        Err(LinkError::Refused { status: status.as_u16(), code: "store_refused".into(), message })
    }
}

impl VaultLink for HttpLink {
    async fn register_disk(
        &self,
        server: ServerId,
        disk: DiskNumber,
        request: &RegisterDisk,
    ) -> Result<DiskRegistration, LinkError> {
        let call = self.client.call(Method::PUT, &path::disk(server, disk)).timeout(self.request_timeout);
        call.json(request).send().await.map_err(link_error)
    }

    async fn grant(&self, request: &GrantRequest) -> Result<Grant, LinkError> {
        self.post(path::GRANTS, request).await
    }

    async fn upload<P: Pace + 'static>(
        &self,
        grant: &Grant,
        file: &Path,
        bytes: u64,
        pace: P,
    ) -> Result<(), LinkError> {
        let opened = File::open(file);
        let opened = opened.map_err(|error| {
            LinkError::NotNow(format!("{} cannot be opened here: {error}", file.display()))
        })?;
        let progress = Arc::new(Progress { clock: self.clock, last_ms: AtomicU64::new(0) });
        progress.made();
        let body = chunks(opened, pace, Arc::clone(&progress));
        let upload = async {
            if grant.url.starts_with('/') {
                let mut call = self.client.call(Method::PUT, &grant.url);
                for (name, value) in &grant.headers {
                    call = call.header(name, value);
                }
                call.stream(body, Some(bytes)).send::<serde::de::IgnoredAny>().await.map_err(link_error)?;
                Ok(())
            } else {
                self.put_to_store(grant, body, bytes).await
            }
        };
        tokio::select! {
            result = upload => result,
            () = progress.stands_still(self.stall_timeout) => {
                let seconds = self.stall_timeout.as_secs();
                Err(LinkError::Unreachable(format!("an upload stood still for {seconds} s")))
            }
        }
    }

    async fn commit(&self, point: &CommitPoint) -> Result<CommitReceipt, LinkError> {
        self.post(path::POINTS, point).await
    }

    async fn digests(
        &self,
        server: ServerId,
        disk: DiskNumber,
        request: &DigestRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, LinkError>>, LinkError> {
        let call = self.client.call(Method::POST, &path::digests(server, disk)).json(request);
        // The vault may read a lot of the copy before it answers.
        let download = call.timeout(self.request_timeout * 4).download().await.map_err(link_error)?;
        Ok(download.into_stream().map_err(link_error).boxed())
    }

    async fn report(&self, report: &ProcessServerReport) -> Result<VaultHello, LinkError> {
        self.post(path::REPORT, report).await
    }

    async fn assignments(&self, seen: Option<u64>) -> Result<Assignments, LinkError> {
        let wait_ms = u64::try_from(ASSIGNMENTS_WAIT.as_millis()).unwrap_or(0);
        let mut query = vec![("wait_ms", wait_ms)];
        query.extend(seen.map(|seen| ("seen", seen)));
        let call = self.client.call(Method::GET, path::ASSIGNMENTS).query(&query);
        call.timeout(ASSIGNMENTS_WAIT + self.request_timeout).send().await.map_err(link_error)
    }

    async fn events(&self, events: &[Event]) -> Result<(), LinkError> {
        self.post(path::EVENTS, &events).await
    }

    async fn facts(&self, server: ServerId, facts: &ServerFacts) -> Result<(), LinkError> {
        let call = self.client.call(Method::PUT, &path::facts(server)).timeout(self.request_timeout);
        call.json(facts).send().await.map_err(link_error)
    }

    async fn result(&self, result: &ServerResult) -> Result<(), LinkError> {
        self.post(path::RESULTS, result).await
    }
}

/// Whether a retry helps decides which kind it is; the sentence stays.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn link_error(error: ClientError) -> LinkError {
    let message = error.to_string();
    match error {
        ClientError::Unreachable { .. } => LinkError::Unreachable(message),
        ClientError::Source { .. } => LinkError::NotNow(message),
        ref other if other.is_retryable() => LinkError::NotNow(message),
        ClientError::Api { status, code, .. } => {
            LinkError::Refused { status: status.as_u16(), code, message }
        }
        ClientError::Tls { .. } | ClientError::Credentials(_) => {
            LinkError::Refused { status: 403, code: "no_trust".into(), message }
        }
        _ => LinkError::Refused { status: 400, code: "not_understood".into(), message },
    }
}

/// When the last piece of an upload was taken.
struct Progress {
    clock: Clock,
    /// `u64::MAX` while the bandwidth limit holds it back on purpose.
    last_ms: AtomicU64,
}

impl Progress {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now().as_millis()).unwrap_or(u64::MAX)
    }

    fn made(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn held_back(&self) {
        self.last_ms.store(u64::MAX, Ordering::Relaxed);
    }

    async fn stands_still(&self, limit: Duration) {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        loop {
            let still_ms = self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed));
            if still_ms >= limit_ms {
                return;
            }
            tokio::time::sleep(Duration::from_millis((limit_ms - still_ms).max(10))).await;
        }
    }
}

/// The file, piece by piece, as the line allows.
fn chunks<P: Pace + 'static>(
    file: File,
    pace: P,
    progress: Arc<Progress>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures::stream::try_unfold((file, pace, progress), |(file, pace, progress)| async move {
        progress.made();
        let (file, chunk) = tokio::task::spawn_blocking(move || next_chunk(file)).await??;
        if chunk.is_empty() {
            return Ok(None);
        }
        progress.held_back();
        pace.wait(chunk.len() as u64).await;
        progress.made();
        Ok(Some((chunk, (file, pace, progress))))
    })
}

fn next_chunk(mut file: File) -> io::Result<(File, Bytes)> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok((file, chunk.into()))
}
