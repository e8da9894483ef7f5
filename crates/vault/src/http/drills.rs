//! Drills that the vault begins by itself.

use axum::Json;
use axum::extract::{Path, State};
use lifeboat_api::{DrillSchedule, ErrorBody, ScheduleDrills};
use lifeboat_transport::{ApiError, OperatorPeer, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::VaultService;

pub(super) fn routes() -> OpenApiRouter<VaultService> {
    OpenApiRouter::new().routes(routes!(schedules)).routes(routes!(schedule, stop))
}

/// Servers that the vault drills by itself, the one that is due first at first.
#[utoipa::path(
    get, path = "/v1/drills",
    responses((status = 200, body = Vec<DrillSchedule>), (status = "default", body = ErrorBody))
)]
async fn schedules(
    State(service): State<VaultService>,
    _: OperatorPeer,
) -> Result<Json<Vec<DrillSchedule>>, ApiError> {
    Ok(Json(service.jobs.drill_schedules().await?))
}

/// Lets the vault drill a server regularly.
#[utoipa::path(
    put, path = "/v1/servers/{server}/drills", params(("server" = String, Path)),
    request_body = ScheduleDrills,
    responses((status = 200, body = DrillSchedule), (status = "default", body = ErrorBody))
)]
async fn schedule(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Json(body): Json<ScheduleDrills>,
) -> Result<Json<DrillSchedule>, ApiError> {
    let server = service.vault.find_server(&server).await?;
    Ok(Json(service.jobs.schedule_drills(server, body.every, service.now()).await?))
}

/// Lets the vault drill a server no more by itself.
#[utoipa::path(
    delete, path = "/v1/servers/{server}/drills", params(("server" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
async fn stop(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
) -> Result<StatusCode, ApiError> {
    let server = service.vault.find_server(&server).await?;
    service.jobs.stop_drills(server).await?;
    Ok(StatusCode::NO_CONTENT)
}
