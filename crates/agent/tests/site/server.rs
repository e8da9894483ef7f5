//! A process server that keeps images instead of files.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State as Extract};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures::StreamExt;
use lifeboat_model::{
    BlockDigest, DiskNumber, Epoch, Part, PointId, ReplicationPolicy, Span, blocks_of_bytes,
};
use lifeboat_transport::{AgentPeer, ApiError, Listener, ListenerSettings, ServerTls};
use lifeboat_trust::{ClientCertificates, Credentials, Revocations};
use lifeboat_wire::agent::{
    AgentReport, Assignment, CHUNK_BLOCKS, CaptureMode, Command, CommandKind, DigestRequest, DigestsOf,
    DiskDescription, DiskState, Outcome, PartReceipt, RequestResult, SealPoint, SealReceipt, ZERO_DIGEST,
};
use lifeboat_wire::agent_path as path;
use lifeboat_wire::event::Event;
use lifeboat_wire::stream::{Decoder, Message};
use tokio::sync::Notify;

type Check = Box<dyn Fn(&BTreeMap<u16, Vec<u8>>) + Send>;

#[derive(Default)]
pub struct State {
    pub disks: BTreeMap<u16, Disk>,
    pub seals: Vec<SealPoint>,
    /// The images of the newest point.
    pub images: BTreeMap<u16, Vec<u8>>,
    pub assignment: Option<Assignment>,
    pub events: Vec<Event>,
    pub report: Option<AgentReport>,
    pub results: Vec<RequestResult>,
    pub received_blocks: u64,
    /// Those of them that were said to be zero.
    pub received_zeroes: u64,
    pub away: bool,
    pub check: Option<Check>,
    pub wrong: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Disk {
    pub bytes: u64,
    pub epoch: u64,
    pub next_part: u32,
    pub sealed: Option<PointId>,
    pub content: Option<Vec<u8>>,
}

impl Disk {
    fn state(&self) -> DiskState {
        DiskState {
            epoch: Epoch(self.epoch),
            next_part: Part(self.next_part),
            sealed: self.sealed,
            copy_bytes: self.content.as_ref().map(|_| self.bytes),
            other_writer: false,
        }
    }

    fn content(&mut self) -> &mut Vec<u8> {
        let bytes = usize::try_from(blocks_of_bytes(self.bytes) * 4096).unwrap();
        let content = self.content.get_or_insert_with(Vec::new);
        content.resize(bytes, 0);
        content
    }
}

pub struct Server {
    pub port: u16,
    pub state: Mutex<State>,
    changed: Notify,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub fn start(credentials: &Credentials) -> Arc<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let settings = ListenerSettings::new(SocketAddr::from(([127, 0, 0, 1], 0)), 1);
        let listener = runtime.block_on(Listener::bind(settings)).unwrap();
        let tls = ServerTls::new(credentials, ClientCertificates::Required, Revocations::default()).unwrap();
        let port = listener.local_address().port();
        let policy = ReplicationPolicy {
            interval: "300ms".parse().unwrap(),
            capture_timeout: Span::seconds(5),
            ..ReplicationPolicy::default()
        };
        let assignment = Assignment {
            revision: 1,
            policy,
            replicate: true,
            reason: None,
            commands: Vec::new(),
            committed: None,
            throttle_bytes_per_second: None,
        };
        let state = Mutex::new(State { assignment: Some(assignment), ..State::default() });
        let handle = runtime.handle().clone();
        let server = Arc::new(Self { port, state, changed: Notify::new(), _runtime: runtime });
        let router = Router::new()
            .route(path::REPORT, post(report))
            .route(path::ASSIGNMENT, get(assignment_of))
            .route(path::POINTS, post(seal))
            .route(path::DISK, put(describe))
            .route(path::PART, put(part))
            .route(path::DIGESTS, post(digests))
            .route(path::RESULTS, post(result))
            .layer(axum::middleware::from_fn_with_state(Arc::downgrade(&server), away))
            .with_state(Arc::downgrade(&server));
        handle.spawn(listener.serve(router, Arc::new(tls), std::future::pending()));
        server
    }

    pub fn newest(&self) -> Option<SealPoint> {
        self.state.lock().unwrap().seals.last().cloned()
    }

    pub fn has_event(&self, code: &str) -> bool {
        self.state.lock().unwrap().events.iter().any(|event| event.code == code)
    }

    /// The messages of all events with a code, about a disk or about none.
    pub fn messages(&self, code: &str, disk: Option<u16>) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let events =
            state.events.iter().filter(|event| event.code == code && event.disk == disk.map(DiskNumber));
        events.map(|event| event.message.clone()).collect()
    }

    /// Why no points are taken, as the newest report says.
    pub fn stalled(&self) -> Option<String> {
        let state = self.state.lock().unwrap();
        match &state.report.as_ref()?.capture {
            CaptureMode::Stalled { reason } => Some(reason.clone()),
            _ => None,
        }
    }

    /// Whether a block of the copy is as a disk has it, points or not.
    pub fn has_block(&self, disk: u16, block: usize, content: &[u8]) -> bool {
        let state = self.state.lock().unwrap();
        let copy = state.disks.get(&disk).and_then(|disk| disk.content.as_ref());
        copy.is_some_and(|copy| copy.get(block * 4096..(block + 1) * 4096) == Some(content))
    }

    pub fn set_away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
    }

    pub fn change_assignment(&self, change: impl FnOnce(&mut Assignment)) {
        let mut state = self.state.lock().unwrap();
        if let Some(assignment) = &mut state.assignment {
            change(assignment);
            assignment.revision += 1;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    pub fn ask(&self, request: u64, kind: CommandKind) {
        self.change_assignment(|assignment| assignment.commands.push(Command { request, kind }));
    }

    pub fn outcome(&self, request: u64) -> Option<Outcome> {
        let state = self.state.lock().unwrap();
        state.results.iter().find(|result| result.request == request).map(|result| result.outcome.clone())
    }

    pub fn check_image(&self, disk: u16, content: &[u8], log: &str) {
        let state = self.state.lock().unwrap();
        let image = &state.images[&disk];
        assert_eq!(image.len(), content.len(), "the size of disk {disk}");
        let wrong: Vec<usize> = (0..content.len() / 4096)
            .filter(|block| image[block * 4096..][..4096] != content[block * 4096..][..4096])
            .collect();
        let number =
            |bytes: &[u8], block: usize| u64::from_le_bytes(bytes[block * 4096..][..8].try_into().unwrap());
        let shown: Vec<_> = wrong
            .iter()
            .take(20)
            .map(|block| (block, number(image, *block), number(content, *block)))
            .collect();
        assert!(
            wrong.is_empty(),
            "{} blocks of disk {disk} are wrong (block, image, disk): {shown:?}; log:\n{log}",
            wrong.len()
        );
        assert!(state.wrong.is_empty(), "{:?}", state.wrong);
    }
}

type Shared = Extract<std::sync::Weak<Server>>;

async fn away(Extract(server): Shared, request: Request, next: Next) -> Response {
    let away = server.upgrade().is_none_or(|server| server.state.lock().unwrap().away);
    if away {
        return ApiError::unavailable("away", "the process server is away").into_response();
    }
    next.run(request).await
}

async fn report(
    Extract(server): Shared,
    AgentPeer(_): AgentPeer,
    Json(report): Json<AgentReport>,
) -> StatusCode {
    let server = server.upgrade().unwrap();
    let mut state = server.state.lock().unwrap();
    state.events.extend(report.events.clone());
    state.report = Some(report);
    StatusCode::NO_CONTENT
}

async fn assignment_of(
    Extract(server): Shared,
    Query(query): Query<BTreeMap<String, u64>>,
) -> Json<Assignment> {
    let server = server.upgrade().unwrap();
    let current = || server.state.lock().unwrap().assignment.clone().unwrap();
    if query.get("seen") == Some(&current().revision) {
        let wait =
            Duration::from_millis(query.get("wait_ms").copied().unwrap_or(0)).min(Duration::from_secs(2));
        let _ = tokio::time::timeout(wait, server.changed.notified()).await;
    }
    Json(current())
}

async fn describe(
    Extract(server): Shared,
    Path(disk): Path<DiskNumber>,
    Json(description): Json<DiskDescription>,
) -> Json<DiskState> {
    let server = server.upgrade().unwrap();
    let mut state = server.state.lock().unwrap();
    let disk = state.disks.entry(disk.0).or_insert_with(|| Disk { epoch: 1, ..Disk::default() });
    disk.bytes = description.bytes;
    Json(disk.state())
}

async fn part(
    Extract(server): Shared,
    Path((disk, epoch, part)): Path<(DiskNumber, Epoch, Part)>,
    body: Body,
) -> Result<Json<PartReceipt>, ApiError> {
    let server = server.upgrade().unwrap();
    let bytes = {
        let state = server.state.lock().unwrap();
        let known = state
            .disks
            .get(&disk.0)
            .ok_or_else(|| ApiError::not_found("unknown_disk", "describe it first"))?;
        if (known.epoch, known.next_part) != (epoch.0, part.0) {
            return Err(ApiError::conflict(
                "wrong_part",
                format!("the next part is {} of {}", known.next_part, known.epoch),
            ));
        }
        known.bytes
    };
    let mut decoder = Decoder::new(blocks_of_bytes(bytes));
    let mut messages = Vec::new();
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        decoder.push(piece.map_err(|error| ApiError::bad_request("cut_off", error.to_string()))?);
        while let Some(message) =
            decoder.next_message().map_err(|error| ApiError::bad_request("stream", error.to_string()))?
        {
            messages.push(message);
        }
    }
    decoder.finish().map_err(|error| ApiError::bad_request("cut_off", error.to_string()))?;
    let mut state = server.state.lock().unwrap();
    let state = &mut *state;
    let known = state.disks.get_mut(&disk.0).unwrap();
    if (known.epoch, known.next_part) != (epoch.0, part.0) {
        return Err(ApiError::conflict("wrong_part", "another connection was first"));
    }
    let content = known.content();
    for message in messages {
        let (extent, bytes) = match &message {
            Message::Data { extent, digest, bytes } => {
                assert_eq!(lifeboat_model::Digest::of(bytes), *digest, "the digest of {extent}");
                (extent, Some(bytes))
            }
            Message::Zeroes { extent } => (extent, None),
        };
        let first = usize::try_from(extent.offset_bytes()).unwrap();
        let range = first..first + usize::try_from(extent.len_bytes()).unwrap();
        match bytes {
            Some(bytes) => content[range].copy_from_slice(bytes),
            None => {
                content[range].fill(0);
                state.received_zeroes += extent.blocks;
            }
        }
        state.received_blocks += extent.blocks;
    }
    known.next_part += 1;
    Ok(Json(PartReceipt { stored_bytes: 0, data_blocks: 0, zero_blocks: 0 }))
}

async fn seal(Extract(server): Shared, Json(seal): Json<SealPoint>) -> Result<Json<SealReceipt>, ApiError> {
    let server = server.upgrade().unwrap();
    let mut state = server.state.lock().unwrap();
    let state = &mut *state;
    let receipt = Json(SealReceipt { point: seal.point });
    if state.seals.contains(&seal) {
        return Ok(receipt);
    }
    for disk in &seal.disks {
        let known = state
            .disks
            .get(&disk.disk.0)
            .ok_or_else(|| ApiError::not_found("unknown_disk", "describe it first"))?;
        if (known.epoch, known.next_part, known.bytes) != (disk.epoch.0, disk.parts, disk.bytes) {
            return Err(ApiError::conflict("parts_differ", "the epoch has other parts"));
        }
    }
    if state.seals.last().is_some_and(|last| last.time >= seal.time) {
        state.wrong.push(format!("point {} is not after the one before", seal.point));
    }
    state.images.clear();
    for disk in &seal.disks {
        let known = state.disks.get_mut(&disk.disk.0).unwrap();
        state.images.insert(disk.disk.0, known.content().clone());
        known.sealed = Some(seal.point);
        known.epoch += 1;
        known.next_part = 0;
    }
    if let Some(check) = &state.check {
        check(&state.images);
    }
    if let Some(assignment) = &mut state.assignment {
        // Committed at once; the agent hears of it when it asks again.
        assignment.committed = Some(seal.point);
        assignment.revision += 1;
    }
    state.seals.push(seal);
    Ok(receipt)
}

async fn digests(
    Extract(server): Shared,
    Path(disk): Path<DiskNumber>,
    Json(request): Json<DigestRequest>,
) -> Result<Vec<u8>, ApiError> {
    let server = server.upgrade().unwrap();
    let state = server.state.lock().unwrap();
    let content = match request.point {
        // It keeps the newest point's image alone; the tests stand still while they compare.
        Some(_) => state.images.get(&disk.0),
        None => state.disks.get(&disk.0).and_then(|disk| disk.content.as_ref()),
    };
    let content = content.ok_or_else(|| ApiError::not_found("no_copy", "there is no copy"))?;
    let chunk_bytes = usize::try_from(CHUNK_BLOCKS * 4096).unwrap();
    let chunks: Vec<&[u8]> = content.chunks(chunk_bytes).collect();
    let digest = |bytes: &[u8]| {
        if bytes.iter().all(|byte| *byte == 0) { ZERO_DIGEST } else { BlockDigest::of(bytes).0 }
    };
    Ok(match request.of {
        DigestsOf::Chunks { first, count } => {
            let wanted =
                chunks.iter().skip(usize::try_from(first).unwrap()).take(usize::try_from(count).unwrap());
            wanted.flat_map(|chunk| digest(chunk)).collect()
        }
        DigestsOf::Blocks { chunks: wanted } => {
            let wanted = wanted.iter().filter_map(|chunk| chunks.get(usize::try_from(*chunk).unwrap()));
            wanted.flat_map(|chunk| chunk.chunks(4096)).flat_map(digest).collect()
        }
    })
}

async fn result(Extract(server): Shared, Json(result): Json<RequestResult>) -> StatusCode {
    let server = server.upgrade().unwrap();
    let mut state = server.state.lock().unwrap();
    if let Some(assignment) = &mut state.assignment {
        assignment.commands.retain(|command| command.request != result.request);
        assignment.revision += 1;
    }
    state.results.push(result);
    drop(state);
    server.changed.notify_waiters();
    StatusCode::NO_CONTENT
}
