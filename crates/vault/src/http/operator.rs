//! What operators ask for.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use lifeboat_api::{
    AcknowledgeEvents, AcknowledgedEvents, ErrorBody, Event, Point, Policy, Request, Server, Status,
    TakePoint,
};
use lifeboat_model::DiskNumber;
use lifeboat_transport::{ApiError, OperatorPeer, StatusCode, Stopping};
use lifeboat_wire::agent::CommandKind;
use lifeboat_wire::event::Severity;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{VaultService, wait};
use crate::error::VaultError;

const POINTS_MAX: u32 = 100_000;
const EVENTS_DEFAULT: u32 = 100;
const EVENTS_MAX: u32 = 10_000;

pub(super) fn routes() -> OpenApiRouter<VaultService> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(servers))
        .routes(routes!(server))
        .routes(routes!(points, take_point))
        .routes(routes!(resync))
        .routes(routes!(request))
        .routes(routes!(events))
        .routes(routes!(acknowledge))
        .routes(routes!(set_policy))
        .routes(routes!(remove_disk))
}

/// The state of the site at a glance.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status), (status = "default", body = ErrorBody)))]
async fn status(State(service): State<VaultService>, _: OperatorPeer) -> Result<Json<Status>, ApiError> {
    Ok(Json(service.vault.status(service.now()).await?))
}

/// All protected servers, by name.
#[utoipa::path(get, path = "/v1/servers", responses((status = 200, body = Vec<Server>), (status = "default", body = ErrorBody)))]
async fn servers(
    State(service): State<VaultService>,
    _: OperatorPeer,
) -> Result<Json<Vec<Server>>, ApiError> {
    Ok(Json(service.vault.servers(service.now()).await?))
}

/// One server. `{server}` is everywhere a name, an id or a unique beginning of one.
#[utoipa::path(
    get, path = "/v1/servers/{server}", params(("server" = String, Path)),
    responses((status = 200, body = Server), (status = "default", body = ErrorBody))
)]
async fn server(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
) -> Result<Json<Server>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    Ok(Json(service.vault.server(server, service.now()).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Limit {
    /// At most so many, the newest; all when absent.
    limit: Option<u32>,
}

/// A server's recovery points, newest first.
#[utoipa::path(
    get, path = "/v1/servers/{server}/points", params(("server" = String, Path), Limit),
    responses((status = 200, body = Vec<Point>), (status = "default", body = ErrorBody))
)]
async fn points(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Query(query): Query<Limit>,
) -> Result<Json<Vec<Point>>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    Ok(Json(service.vault.points(server, query.limit.unwrap_or(POINTS_MAX).min(POINTS_MAX)).await?))
}

/// Asks for a recovery point now. The request is done when the point is committed.
#[utoipa::path(
    post, path = "/v1/servers/{server}/points", params(("server" = String, Path)), request_body = TakePoint,
    responses((status = 202, body = Request), (status = "default", body = ErrorBody))
)]
async fn take_point(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Json(body): Json<TakePoint>,
) -> Result<(StatusCode, Json<Request>), ApiError> {
    if body.kind == lifeboat_model::PointKind::Application {
        let message = "application-consistent points cannot be asked for yet; ask for a filesystem one";
        return Err(VaultError::Invalid(message.to_owned()).into());
    }
    ask(&service, &server, CommandKind::TakePoint { kind: body.kind }).await
}

/// Asks for a resync: all disks are compared with their copies, and what differs is sent anew.
#[utoipa::path(
    post, path = "/v1/servers/{server}/resync", params(("server" = String, Path)),
    responses((status = 202, body = Request), (status = "default", body = ErrorBody))
)]
async fn resync(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
) -> Result<(StatusCode, Json<Request>), ApiError> {
    ask(&service, &server, CommandKind::Resync).await
}

async fn ask(
    service: &VaultService,
    server: &str,
    command: CommandKind,
) -> Result<(StatusCode, Json<Request>), ApiError> {
    let server = service.vault.find_server(server).await?;
    let request = service.vault.ask(server, command, service.now()).await?;
    Ok((StatusCode::ACCEPTED, Json(request)))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wait {
    /// Wait so many milliseconds for its end, at most 25,000.
    wait_ms: Option<u64>,
}

/// Something that was asked for.
#[utoipa::path(
    get, path = "/v1/requests/{request}", params(("request" = String, Path), Wait),
    responses((status = 200, body = Request), (status = "default", body = ErrorBody))
)]
async fn request(
    State(service): State<VaultService>,
    _: OperatorPeer,
    stopping: Stopping,
    Path(request): Path<String>,
    Query(query): Query<Wait>,
) -> Result<Json<Request>, ApiError> {
    let found = tokio::select! {
        ended = service.vault.request_within(&request, wait(query.wait_ms)) => ended,
        () = stopping.stopped() => service.vault.request_within(&request, Duration::ZERO).await,
    };
    Ok(Json(found?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct EventFilter {
    /// At least so severe: `information`, `warning` or `critical`. All when absent.
    severity: Option<String>,
    /// Of this server alone.
    server: Option<String>,
    /// At most so many; 100 when absent.
    limit: Option<u32>,
}

/// What happened, newest first.
#[utoipa::path(
    get, path = "/v1/events", params(EventFilter),
    responses((status = 200, body = Vec<Event>), (status = "default", body = ErrorBody))
)]
async fn events(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Query(filter): Query<EventFilter>,
) -> Result<Json<Vec<Event>>, ApiError> {
    let severity = match filter.severity.as_deref() {
        None | Some("information") => Severity::Information,
        Some("warning") => Severity::Warning,
        Some("critical") => Severity::Critical,
        Some(other) => {
            let message = format!("a severity is information, warning or critical, not {other:?}");
            return Err(VaultError::Invalid(message).into());
        }
    };
    let server = match filter.server {
        Some(server) => Some(service.vault.find_server(&server).await?),
        None => None,
    };
    let limit = filter.limit.unwrap_or(EVENTS_DEFAULT).min(EVENTS_MAX);
    Ok(Json(service.vault.catalog().events(severity, server, limit).await.map_err(VaultError::from)?))
}

/// Notes that events were seen to: they want no attention any more.
#[utoipa::path(
    post, path = "/v1/events/acknowledge", request_body = AcknowledgeEvents,
    responses((status = 200, body = AcknowledgedEvents), (status = "default", body = ErrorBody))
)]
async fn acknowledge(
    State(service): State<VaultService>,
    OperatorPeer(operator): OperatorPeer,
    Json(body): Json<AcknowledgeEvents>,
) -> Result<Json<AcknowledgedEvents>, ApiError> {
    Ok(Json(service.vault.acknowledge(&body, &operator, service.now()).await?))
}

/// Replaces a server's policy. The agent has it within seconds.
#[utoipa::path(
    put, path = "/v1/servers/{server}/policy", params(("server" = String, Path)), request_body = Policy,
    responses((status = 200, body = Server), (status = "default", body = ErrorBody))
)]
async fn set_policy(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Json(policy): Json<Policy>,
) -> Result<Json<Server>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    service.vault.set_policy(server, &policy.into()).await?;
    Ok(Json(service.vault.server(server, service.now()).await?))
}

/// Takes a disk out of protection. Points that have it stay.
#[utoipa::path(
    delete, path = "/v1/servers/{server}/disks/{disk}",
    params(("server" = String, Path), ("disk" = u16, Path)),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
async fn remove_disk(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path((server, disk)): Path<(String, DiskNumber)>,
) -> Result<StatusCode, ApiError> {
    let server = service.vault.find_server(&server).await?;
    service.vault.remove_disk(server, disk, service.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
