//! What process servers ask for; see `lifeboat_wire::process_server_path`.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use lifeboat_model::{DiskNumber, ServerId};
use lifeboat_transport::{ApiError, ProcessServerPeer, StatusCode, Stopping};
use lifeboat_wire::event::Event;
use lifeboat_wire::facts::{FACTS_BYTES_MAX, ServerFacts};
use lifeboat_wire::process_server::{
    Assignments, CommitPoint, CommitReceipt, DiskRegistration, Grant, GrantRequest, ProcessServerReport,
    RegisterDisk, ServerResult, VaultHello,
};
use lifeboat_wire::process_server_path as path;
use serde::Deserialize;

use super::{VaultService, wait};
use crate::manifest::MANIFEST_BYTES_MAX;

/// Bytes of a commit: it names as many files as a manifest can.
const COMMIT_BYTES_MAX: usize = 64 << 20;
const _: () = assert!(COMMIT_BYTES_MAX as u64 == MANIFEST_BYTES_MAX, "one for the other");
/// Bytes of a report with the state of every agent behind a process server.
const REPORT_BYTES_MAX: usize = 16 << 20;
/// Events that are taken at once.
const EVENTS_MAX: usize = 1000;

pub(super) fn routes() -> Router<VaultService> {
    Router::new()
        .route(path::REPORT, post(report).layer(DefaultBodyLimit::max(REPORT_BYTES_MAX)))
        .route(path::ASSIGNMENTS, get(assignments))
        .route(path::DISK, put(register_disk))
        .route(path::GRANTS, post(grant))
        .route(path::POINTS, post(commit_point).layer(DefaultBodyLimit::max(COMMIT_BYTES_MAX)))
        .route(path::EVENTS, post(events))
        .route(path::RESULTS, post(result))
        .route(path::FACTS, put(facts).layer(DefaultBodyLimit::max(FACTS_BYTES_MAX)))
        .route(path::OBJECT, put(put_object))
}

async fn report(
    State(service): State<VaultService>,
    ProcessServerPeer(name): ProcessServerPeer,
    Json(report): Json<ProcessServerReport>,
) -> Result<Json<VaultHello>, ApiError> {
    let revoked = service.revoked.serials();
    Ok(Json(service.vault.take_report(&name, report, revoked, service.now()).await?))
}

#[derive(Deserialize)]
struct Seen {
    seen: Option<u64>,
    wait_ms: Option<u64>,
}

async fn assignments(
    State(service): State<VaultService>,
    ProcessServerPeer(name): ProcessServerPeer,
    stopping: Stopping,
    Query(query): Query<Seen>,
) -> Result<Json<Assignments>, ApiError> {
    let assignments = tokio::select! {
        changed = service.vault.assignments_after(&name, query.seen, wait(query.wait_ms)) => changed,
        () = stopping.stopped() => service.vault.assignments_after(&name, None, Duration::ZERO).await,
    };
    Ok(Json(assignments?))
}

async fn register_disk(
    State(service): State<VaultService>,
    ProcessServerPeer(name): ProcessServerPeer,
    Path((server, disk)): Path<(ServerId, DiskNumber)>,
    Json(body): Json<RegisterDisk>,
) -> Result<Json<DiskRegistration>, ApiError> {
    let (vault, now) = (&service.vault, service.now());
    Ok(Json(vault.register_disk(&name, server, disk, &body.description, now).await?))
}

async fn grant(
    State(service): State<VaultService>,
    ProcessServerPeer(name): ProcessServerPeer,
    Json(request): Json<GrantRequest>,
) -> Result<Json<Grant>, ApiError> {
    Ok(Json(service.vault.grant(&name, &request, service.now()).await?))
}

async fn put_object(
    State(service): State<VaultService>,
    ProcessServerPeer(name): ProcessServerPeer,
    Path(token): Path<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    service.vault.receive(&name, &token, body.into_data_stream(), service.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn commit_point(
    State(service): State<VaultService>,
    ProcessServerPeer(name): ProcessServerPeer,
    Json(commit): Json<CommitPoint>,
) -> Result<Json<CommitReceipt>, ApiError> {
    Ok(Json(service.vault.commit_point(&name, &commit, service.now()).await?))
}

async fn events(
    State(service): State<VaultService>,
    _: ProcessServerPeer,
    Json(events): Json<Vec<Event>>,
) -> Result<StatusCode, ApiError> {
    // The newest are the ones that matter; a list as long as that is of a role gone wrong.
    let skipped = events.len().saturating_sub(EVENTS_MAX);
    service.vault.note_all(&events[skipped..]).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn result(
    State(service): State<VaultService>,
    _: ProcessServerPeer,
    Json(result): Json<ServerResult>,
) -> Result<StatusCode, ApiError> {
    service.vault.take_result(&result, service.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn facts(
    State(service): State<VaultService>,
    _: ProcessServerPeer,
    Path(server): Path<ServerId>,
    Json(facts): Json<ServerFacts>,
) -> Result<StatusCode, ApiError> {
    service.vault.take_facts(server, facts, service.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
