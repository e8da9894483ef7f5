//! The requests of agents. Who calls is known from the certificate alone.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures::StreamExt;
use lifeboat_model::{DiskNumber, Epoch, Part, ServerId};
use lifeboat_transport::{AgentPeer, ApiError, Stopping};
use lifeboat_wire::agent::{
    AgentReport, Assignment, DescribeDisk, DigestRequest, DiskDescription, DiskState, RequestResult,
    SealPoint, SealReceipt,
};
use lifeboat_wire::agent_path as path;
use lifeboat_wire::facts::{FACTS_BYTES_MAX, ServerFacts};
use lifeboat_wire::process_server::{self, DiskRegistration, RegisterDisk, ServerResult};
use serde::Deserialize;

use crate::courier::Courier;
use crate::gateway::{PartPlace, WriterClaim};
use crate::link::{LinkError, VaultLink};
use crate::receiver::Receiver;
use crate::refusal::Refusal;

/// The longest time for which an agent's question for its assignment is held back.
const ASSIGNMENT_WAIT_MAX: Duration = Duration::from_secs(60);

/// How long an agent that describes a known disk waits for the vault.
const REGISTER_WAIT: Duration = Duration::from_secs(5);

/// How long and how much an agent may go on sending a part that is refused.
const REFUSED_TIME_MAX: Duration = Duration::from_secs(5);
const REFUSED_BYTES_MAX: u64 = 256 << 20;

/// What the handlers work with.
pub(crate) struct Desk<V> {
    pub receiver: Receiver,
    pub courier: Arc<Courier<V>>,
    pub digest_wait: Duration,
}

type Shared<V> = State<Arc<Desk<V>>>;

/// The paths that agents call.
pub(crate) fn router<V: VaultLink>(desk: Arc<Desk<V>>) -> Router {
    Router::new()
        .route(path::REPORT, post(report::<V>))
        .route(path::ASSIGNMENT, get(assignment::<V>))
        .route(path::POINTS, post(seal::<V>))
        .route(path::DISK, put(describe::<V>))
        .route(path::PART, put(part::<V>))
        .route(path::DIGESTS, post(digests::<V>))
        .route(path::RESULTS, post(result::<V>))
        .route(path::FACTS, put(facts::<V>).layer(DefaultBodyLimit::max(FACTS_BYTES_MAX)))
        .with_state(desk)
}

/// A refusal on its way out. It names where the disk stands in words alone: an agent that was refused
/// describes the disk, which answers with the state.
struct Refused(Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(refusal) = self;
        let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        ApiError::new(status, refusal.code(), refusal.to_string()).into_response()
    }
}

/// Runs what may block on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Refusal::Stopping))
}

async fn report<V: VaultLink>(
    State(desk): Shared<V>,
    AgentPeer(server): AgentPeer,
    Json(mut report): Json<AgentReport>,
) -> StatusCode {
    let mut events = std::mem::take(&mut report.events);
    for event in &mut events {
        event.server = Some(server);
    }
    let courier = Arc::clone(&desk.courier);
    let clock = courier.clock;
    if courier.agents.heard(server, report, clock.now(), clock.wall()) {
        courier.report_soon.notify_one();
    }
    if !events.is_empty() {
        // A panic inside was logged; the agent's report itself was taken.
        let _ = tokio::task::spawn_blocking(move || courier.tell(events)).await;
    }
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct AssignmentQuery {
    seen: Option<u64>,
    wait_ms: Option<u64>,
}

async fn assignment<V: VaultLink>(
    State(desk): Shared<V>,
    AgentPeer(server): AgentPeer,
    stopping: Stopping,
    Query(query): Query<AssignmentQuery>,
) -> Json<Assignment> {
    let wait = Duration::from_millis(query.wait_ms.unwrap_or(0)).min(ASSIGNMENT_WAIT_MAX);
    let desk = &desk.courier.desk;
    Json(tokio::select! {
        assignment = desk.wait_for(server, query.seen, wait) => assignment,
        () = stopping.stopped() => desk.of(server),
    })
}

#[derive(Deserialize)]
struct WriterQuery {
    #[serde(default)]
    writer: u64,
}

async fn seal<V: VaultLink>(
    State(desk): Shared<V>,
    AgentPeer(server): AgentPeer,
    Query(WriterQuery { writer }): Query<WriterQuery>,
    Json(seal): Json<SealPoint>,
) -> Result<Json<SealReceipt>, Refused> {
    let sealed = async {
        desk.courier.desk.check_replicates(server)?;
        let (gateway, wall) = (Arc::clone(&desk.courier.gateway), desk.courier.clock.wall());
        blocking(move || gateway.seal_point(server, &seal, writer, wall)).await
    };
    let receipt = sealed.await?;
    desk.courier.report_soon.notify_one();
    Ok(Json(receipt))
}

async fn describe<V: VaultLink>(
    State(desk): Shared<V>,
    AgentPeer(server): AgentPeer,
    Path(disk): Path<DiskNumber>,
    Json(DescribeDisk { description, writer, follows, attempt, heard }): Json<DescribeDisk>,
) -> Result<Json<DiskState>, Refused> {
    let claim = WriterClaim { writer, follows, attempt, heard };
    let registration = register(&desk, server, disk, &description).await?;
    let (gateway, wall) = (Arc::clone(&desk.courier.gateway), desk.courier.clock.wall());
    let described =
        blocking(move || gateway.describe_disk(server, disk, &description, Some(&claim), registration, wall))
            .await;
    Ok(Json(described?))
}

/// Asks the vault, and does without it where the disk is known here.
async fn register<V: VaultLink>(
    desk: &Desk<V>,
    server: ServerId,
    disk: DiskNumber,
    description: &DiskDescription,
) -> Result<Option<(DiskRegistration, u64)>, Refusal> {
    let gateway = &desk.courier.gateway;
    let known = gateway.knows_disk(server, disk);
    let commits = gateway.commits(server);
    let request = RegisterDisk { description: description.clone() };
    let asking = desk.courier.link.register_disk(server, disk, &request);
    let answer = if known {
        let in_time = tokio::time::timeout(REGISTER_WAIT, asking).await;
        in_time.unwrap_or_else(|_| Err(LinkError::Unreachable("it did not answer in time".into())))
    } else {
        asking.await
    };
    match answer {
        Ok(registration) => Ok(Some((registration, commits))),
        Err(error) if known && error.retry_helps() => {
            tracing::info!(%server, %disk, "a known disk was described without the vault: {error}");
            Ok(None)
        }
        Err(error) => Err(Refusal::Vault(error)),
    }
}

async fn part<V: VaultLink>(
    State(desk): Shared<V>,
    AgentPeer(server): AgentPeer,
    Path((disk, epoch, part)): Path<(DiskNumber, Epoch, Part)>,
    Query(WriterQuery { writer }): Query<WriterQuery>,
    body: Body,
) -> Response {
    let mut body = body.into_data_stream();
    let received = async {
        desk.courier.desk.check_replicates(server)?;
        let place = PartPlace { server, disk, epoch, part, writer };
        desk.receiver.receive(place, &mut body).await
    };
    let refusal = match received.await {
        Ok(receipt) => return Json(receipt).into_response(),
        Err(refusal) => refusal,
    };
    // One that was silent or was replaced will hardly send the rest.
    let silent = matches!(refusal, Refusal::Superseded { .. } | Refusal::Stalled(_));
    let read = !silent && read_rest(&mut body).await;
    let mut response = Refused(refusal).into_response();
    if !read {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads what is left of a refused body, within bounds. A client that is still sending when the
/// connection closes often sees no more than that it closed.
async fn read_rest(body: &mut BodyDataStream) -> bool {
    let reading = async {
        let mut bytes = 0;
        while let Some(piece) = body.next().await {
            let Ok(piece) = piece else { return false };
            bytes += piece.len() as u64;
            if bytes > REFUSED_BYTES_MAX {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(REFUSED_TIME_MAX, reading).await.unwrap_or(false)
}

async fn digests<V: VaultLink>(
    State(desk): Shared<V>,
    AgentPeer(server): AgentPeer,
    Path(disk): Path<DiskNumber>,
    Json(request): Json<DigestRequest>,
) -> Result<Response, Refused> {
    let gateway = &desk.courier.gateway;
    let snapshot = gateway.snapshot(server, disk).ok_or(Refusal::UnknownDisk { disk })?;
    let deadline = tokio::time::Instant::now() + desk.digest_wait;
    let mut changes = gateway.subscribe();
    loop {
        changes.mark_unchanged();
        let Some(behind) = gateway.behind(server, &snapshot) else { break };
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(deadline) => {
                let crate::gateway::Behind { files, bytes, points } = behind;
                return Err(Refusal::UploadBehind { files, bytes, points }.into());
            }
        }
    }
    let open_files = if request.point.is_none() { gateway.stored_files(server, disk) } else { Vec::new() };
    let request = process_server::DigestRequest { point: request.point, open_files, of: request.of };
    let stream = desk.courier.link.digests(server, disk, &request).await.map_err(Refusal::Vault)?;
    let mut response = Response::new(Body::from_stream(stream));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

async fn result<V: VaultLink>(
    State(desk): Shared<V>,
    AgentPeer(server): AgentPeer,
    Json(result): Json<RequestResult>,
) -> Result<StatusCode, Refused> {
    let courier = Arc::clone(&desk.courier);
    blocking(move || courier.keep_result(ServerResult { server, result })).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Nothing of it is kept here: the agent sends its facts again until the vault has them.
async fn facts<V: VaultLink>(
    State(desk): Shared<V>,
    AgentPeer(server): AgentPeer,
    Json(facts): Json<ServerFacts>,
) -> Result<StatusCode, Refused> {
    desk.courier.link.facts(server, &facts).await.map_err(Refusal::Vault)?;
    Ok(StatusCode::NO_CONTENT)
}
