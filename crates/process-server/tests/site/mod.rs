//! A small site for tests: an authority, a vault that checks what it is given, agents.
#![allow(dead_code, reason = "each test program uses some of it")]

#[path = "../../../proof/src/free_port.rs"]
mod free_port;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use lifeboat_hrl::FileVerifier;
use lifeboat_model::{BLOCK_BYTES, Digest, DiskNumber, Epoch, Extent, Part, ServerId};
use lifeboat_process_server::Settings;
use lifeboat_transport::{
    ApiError, Client, ClientError, ClientSettings, Listener, ListenerSettings, Method, ProcessServerPeer,
    ServerTls, StatusCode,
};
use lifeboat_trust::{
    ClientCertificates, Credentials, Identity, IssuedCertificate, Revocations, SiteAuthority,
};
use lifeboat_wire::agent::{Assignment, DiskState, PartReceipt, SealPoint, SealReceipt};
use lifeboat_wire::event::Event;
use lifeboat_wire::process_server::{
    Assignments, CommitPoint, CommitReceipt, DigestRequest, DiskRegistration, Grant, GrantRequest,
    ProcessServerReport, RegisterDisk, ServerResult, VaultHello,
};
use lifeboat_wire::{agent_path, process_server_path, stream};
use serde::Deserialize;
use tokio::task::JoinHandle;

use crate::common;
use free_port::free_port;

pub const NAME: &str = "hall-1";

/// What the vault has and how it behaves.
#[derive(Default)]
pub struct Vault {
    pub objects: BTreeMap<String, Bytes>,
    pub committed: Vec<CommitPoint>,
    pub registered: BTreeMap<(ServerId, DiskNumber), RegisterDisk>,
    pub reports: Vec<ProcessServerReport>,
    pub events: Vec<Event>,
    pub results: Vec<ServerResult>,
    pub digest_requests: Vec<DigestRequest>,
    pub assignments: BTreeMap<ServerId, Assignment>,
    pub revision: u64,
    pub revoked: Vec<String>,
    /// Uploads are answered with 503.
    pub takes_no_uploads: bool,
    /// Every second upload is cut off by the vault.
    pub cuts_uploads: bool,
    pub uploads: u64,
}

type Shared = Arc<Mutex<Vault>>;

pub struct Site {
    pub dir: tempfile::TempDir,
    authority: SiteAuthority,
    pub vault: Shared,
    vault_address: SocketAddr,
    vault_task: Option<JoinHandle<()>>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop_vault();
    }
}

impl Site {
    pub async fn new() -> Self {
        let dir = common::fast_dir();
        let authority =
            SiteAuthority::create(&dir.path().join("authority"), "test", Timestamp::now()).unwrap();
        let mut site =
            Self { vault: Arc::default(), vault_address: free_address(), vault_task: None, authority, dir };
        site.issue(&Identity::ProcessServer(NAME.into())).write_bundle(&site.credentials_dir()).unwrap();
        site.start_vault().await;
        site
    }

    fn credentials_dir(&self) -> PathBuf {
        self.dir.path().join("credentials")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn issue(&self, identity: &Identity) -> IssuedCertificate {
        let day = Duration::from_secs(86_400);
        self.authority.issue(identity, &["127.0.0.1".to_owned()], day, Timestamp::now()).unwrap()
    }

    pub fn vault(&self) -> MutexGuard<'_, Vault> {
        self.vault.lock().unwrap()
    }

    pub fn stop_vault(&mut self) {
        if let Some(task) = self.vault_task.take() {
            task.abort();
        }
    }

    pub async fn start_vault(&mut self) {
        let credentials = self.issue(&Identity::Vault).credentials().unwrap();
        let tls = ServerTls::new(&credentials, ClientCertificates::Required, Revocations::new()).unwrap();
        let settings = ListenerSettings::new(self.vault_address, 1);
        let listener = loop {
            match Listener::bind(settings.clone()).await {
                Ok(listener) => break listener,
                // The one that was stopped is still letting go of the port.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let router = vault_router(Arc::clone(&self.vault));
        self.vault_task = Some(tokio::spawn(async move {
            listener.serve(router, Arc::new(tls), std::future::pending()).await;
        }));
    }

    pub fn settings_text(&self, address: SocketAddr, state: &Path, more: &str) -> String {
        format!(
            "name = \"{NAME}\"\nlisten = \"{address}\"\nvault = \"https://{}\"\ncredentials = {:?}\nstate = {state:?}\n\
             [upload]\nrequest_timeout = \"5s\"\nretry_max = \"1s\"\nrefused_retry_max = \"1s\"\n\
             [spool]\nreserve_mib = 1\nwarn_below_percent = 3\ncritical_below_percent = 2\nthrottle_below_percent = 1\n{more}",
            self.vault_address,
            self.credentials_dir(),
        )
    }

    /// Starts a process server in this process.
    pub async fn start(&self) -> Running {
        self.start_in(&self.state_dir(), "").await
    }

    pub async fn start_in(&self, state: &Path, more: &str) -> Running {
        let address = free_address();
        let settings = Settings::from_toml(&self.settings_text(address, state, more)).unwrap();
        let stop = Arc::new(tokio::sync::Notify::new());
        let stopped = Arc::clone(&stop);
        let task =
            tokio::spawn(lifeboat_process_server::serve(settings, async move { stopped.notified().await }));
        let running = Running { address, stop, task };
        wait_for_port(address).await;
        running
    }

    pub fn agent(&self, server: ServerId, address: SocketAddr) -> Agent {
        let credentials = self.issue(&Identity::Agent(server)).credentials().unwrap();
        Agent::new(server, address, &credentials)
    }
}

pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

pub async fn wait_for_port(address: SocketAddr) {
    until("the process server listens", || std::net::TcpStream::connect(address).is_ok()).await;
}

/// Waits for something that must come true.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("this never came true: {what}");
}

/// A process server in this process.
pub struct Running {
    pub address: SocketAddr,
    stop: Arc<tokio::sync::Notify>,
    task: JoinHandle<Result<(), lifeboat_process_server::ProcessServerError>>,
}

impl Running {
    pub async fn stop(self) {
        self.stop.notify_one();
        self.task.await.unwrap().unwrap();
    }
}

/// One message of a part.
#[derive(Clone, Debug)]
pub enum Change {
    Data(Extent, Bytes),
    Zeroes(Extent),
}

/// Blocks `first..first + blocks` with bytes that depend on `seed`.
pub fn data(first: u64, blocks: u64, seed: u64) -> Change {
    let extent = Extent::new(first, blocks).unwrap();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(blocks as usize * BLOCK_BYTES);
    for _ in 0..blocks as usize * BLOCK_BYTES / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    Change::Data(extent, bytes.into())
}

pub fn encode(changes: &[Change]) -> Vec<Bytes> {
    let mut pieces = vec![stream::begin()];
    for change in changes {
        match change {
            Change::Data(extent, bytes) => {
                pieces.extend(stream::data(*extent, Digest::of(bytes), bytes.clone()));
            }
            Change::Zeroes(extent) => pieces.push(stream::zeroes(*extent)),
        }
    }
    pieces.push(stream::end(changes.len() as u64));
    pieces
}

#[derive(Clone)]
pub struct Agent {
    pub server: ServerId,
    pub client: Client,
}

impl Agent {
    pub fn new(server: ServerId, address: SocketAddr, credentials: &Credentials) -> Self {
        let settings = ClientSettings { call_timeout: Duration::from_secs(30), ..ClientSettings::default() };
        let client = Client::with_settings(&format!("https://{address}"), credentials, settings).unwrap();
        Self { server, client }
    }

    pub async fn describe(&self, disk: u16) -> Result<DiskState, ClientError> {
        self.client.put(&agent_path::disk(DiskNumber(disk)), &common::description()).await
    }

    /// As an agent does: until the process server has heard of the vault.
    pub async fn assigned(&self) -> Assignment {
        let mut seen = None;
        loop {
            let mut query = vec![("wait_ms", 1000)];
            query.extend(seen.map(|seen| ("seen", seen)));
            let call = self.client.call(Method::GET, agent_path::ASSIGNMENT).query(&query);
            let assignment: Assignment = call.send().await.unwrap();
            if assignment.replicate {
                return assignment;
            }
            seen = Some(assignment.revision);
        }
    }

    pub async fn send(
        &self,
        disk: u16,
        epoch: u64,
        part: u32,
        pieces: Vec<Bytes>,
    ) -> Result<PartReceipt, ClientError> {
        let path = agent_path::part(DiskNumber(disk), Epoch(epoch), Part(part));
        let body = futures::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        self.client.call(Method::PUT, &path).stream(body, None).send().await
    }

    pub async fn seal(&self, seal: &SealPoint) -> Result<SealReceipt, ClientError> {
        self.client.post(agent_path::POINTS, seal).await
    }
}

fn vault_router(vault: Shared) -> Router {
    use process_server_path as path;
    Router::new()
        .route(path::REPORT, post(report))
        .route(path::ASSIGNMENTS, get(assignments))
        .route(path::DISK, put(register))
        .route(path::DIGESTS, post(digests))
        .route(path::GRANTS, post(grant))
        .route(path::POINTS, post(commit))
        .route(path::EVENTS, post(events))
        .route(path::RESULTS, post(results))
        .route(path::OBJECT, put(object))
        .with_state(vault)
}

async fn report(
    State(vault): State<Shared>,
    ProcessServerPeer(name): ProcessServerPeer,
    Json(report): Json<ProcessServerReport>,
) -> Json<VaultHello> {
    assert_eq!(name, NAME);
    let mut vault = vault.lock().unwrap();
    vault.reports.push(report);
    Json(VaultHello { vault: common::VAULT, time: Timestamp::now(), revoked: vault.revoked.clone() })
}

#[derive(Deserialize)]
struct Seen {
    seen: Option<u64>,
    wait_ms: u64,
}

async fn assignments(State(vault): State<Shared>, Query(query): Query<Seen>) -> Json<Assignments> {
    let deadline = tokio::time::Instant::now() + Duration::from_millis(query.wait_ms);
    loop {
        {
            let vault = vault.lock().unwrap();
            if query.seen != Some(vault.revision) || tokio::time::Instant::now() >= deadline {
                return Json(Assignments { revision: vault.revision, servers: vault.assignments.clone() });
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn register(
    State(vault): State<Shared>,
    UrlPath((server, disk)): UrlPath<(ServerId, DiskNumber)>,
    Json(request): Json<RegisterDisk>,
) -> Json<DiskRegistration> {
    let mut vault = vault.lock().unwrap();
    vault.registered.insert((server, disk), request);
    let committed =
        vault.committed.iter().rev().filter(|commit| commit.server == server).find_map(|commit| {
            let seal = commit.seal.disks.iter().find(|seal| seal.disk == disk)?;
            Some((commit.seal.point, seal.epoch))
        });
    Json(common::registration(server, disk, committed))
}

async fn digests(State(vault): State<Shared>, Json(request): Json<DigestRequest>) -> Bytes {
    vault.lock().unwrap().digest_requests.push(request);
    Bytes::from(vec![7; 64])
}

pub fn object_name(server: ServerId, disk: DiskNumber, epoch: Epoch, part: Part) -> String {
    format!("{server}-{disk}-{epoch}-{part}")
}

async fn grant(State(vault): State<Shared>, Json(request): Json<GrantRequest>) -> Json<Grant> {
    let file = &request.file;
    let token = object_name(request.server, file.disk, file.epoch, file.part);
    let stored = vault.lock().unwrap().objects.contains_key(&token);
    let url = if stored { String::new() } else { format!("/v1/objects/{token}") };
    Json(Grant { stored, url, headers: BTreeMap::new(), expires: Timestamp::MAX })
}

async fn object(
    State(vault): State<Shared>,
    UrlPath(token): UrlPath<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let cut = {
        let mut vault = vault.lock().unwrap();
        vault.uploads += 1;
        if vault.takes_no_uploads {
            return Err(ApiError::unavailable("busy", "the store is being moved"));
        }
        vault.cuts_uploads && vault.uploads % 2 == 1
    };
    let mut verifier = FileVerifier::new();
    let mut bytes = Vec::new();
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(ApiError::internal)?;
        verifier.update(&piece).map_err(|error| ApiError::bad_request("damaged", error.to_string()))?;
        bytes.extend_from_slice(&piece);
        if cut {
            return Err(ApiError::unavailable("cut", "cut off in the middle"));
        }
    }
    verifier.finish().map_err(|error| ApiError::bad_request("damaged", error.to_string()))?;
    vault.lock().unwrap().objects.insert(token, bytes.into());
    Ok(StatusCode::NO_CONTENT)
}

async fn commit(
    State(vault): State<Shared>,
    Json(commit): Json<CommitPoint>,
) -> Result<Json<CommitReceipt>, ApiError> {
    let mut vault = vault.lock().unwrap();
    let receipt = CommitReceipt { point: commit.seal.point, committed_at: Timestamp::now() };
    if vault.committed.iter().any(|done| done.seal.point == commit.seal.point) {
        return Ok(Json(receipt));
    }
    for file in &commit.files {
        let name = object_name(commit.server, file.disk, file.epoch, file.part);
        if vault.objects.get(&name).map(|bytes| bytes.len() as u64) != Some(file.bytes) {
            return Err(ApiError::conflict("not_stored", format!("{name} is not stored")));
        }
    }
    vault.committed.push(commit);
    Ok(Json(receipt))
}

async fn events(State(vault): State<Shared>, Json(events): Json<Vec<Event>>) -> StatusCode {
    vault.lock().unwrap().events.extend(events);
    StatusCode::NO_CONTENT
}

async fn results(State(vault): State<Shared>, Json(result): Json<ServerResult>) -> StatusCode {
    vault.lock().unwrap().results.push(result);
    StatusCode::NO_CONTENT
}
