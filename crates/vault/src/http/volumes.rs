//! Volumes for operators, and digests of copies for process servers.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::routing::post;
use axum::{Json, Router};
use lifeboat_api::{ErrorBody, OpenVolume, OpenedVolume, Volume};
use lifeboat_model::{DiskNumber, ServerId};
use lifeboat_transport::{ApiError, OperatorPeer, ProcessServerPeer, StatusCode};
use lifeboat_wire::process_server::DigestRequest;
use lifeboat_wire::process_server_path as path;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::VaultService;
use crate::volumes::VolumesError;

/// Bytes of a request for digests: it names the files of an open epoch, and chunks.
const DIGEST_REQUEST_BYTES_MAX: usize = 64 << 20;

pub(super) fn routes() -> OpenApiRouter<VaultService> {
    OpenApiRouter::new().routes(routes!(open)).routes(routes!(list)).routes(routes!(close))
}

pub(super) fn process_server_routes() -> Router<VaultService> {
    let limit = axum::extract::DefaultBodyLimit::max(DIGEST_REQUEST_BYTES_MAX);
    Router::new().route(path::DIGESTS, post(digests).layer(limit))
}

/// Opens disks of a recovery point over NBD.
#[utoipa::path(
    post, path = "/v1/servers/{server}/volumes", params(("server" = String, Path)), request_body = OpenVolume,
    responses((status = 201, body = OpenedVolume), (status = "default", body = ErrorBody))
)]
async fn open(
    State(service): State<VaultService>,
    OperatorPeer(operator): OperatorPeer,
    Path(server): Path<String>,
    Json(body): Json<OpenVolume>,
) -> Result<(StatusCode, Json<OpenedVolume>), ApiError> {
    let server = service.vault.find_server(&server).await?;
    let opened = service.volumes.open(server, &body, &by(&operator), service.now()).await?;
    Ok((StatusCode::CREATED, Json(opened)))
}

/// Open volumes, the oldest first.
#[utoipa::path(
    get, path = "/v1/volumes",
    responses((status = 200, body = Vec<Volume>), (status = "default", body = ErrorBody))
)]
async fn list(State(service): State<VaultService>, _: OperatorPeer) -> Result<Json<Vec<Volume>>, ApiError> {
    Ok(Json(service.volumes.list().await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Close {
    /// Also while clients use it, which are broken off.
    #[serde(default)]
    force: bool,
}

/// Closes a volume, named by id or a unique beginning of one. What was written to it is gone.
#[utoipa::path(
    delete, path = "/v1/volumes/{volume}", params(("volume" = String, Path), Close),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
async fn close(
    State(service): State<VaultService>,
    OperatorPeer(operator): OperatorPeer,
    Path(volume): Path<String>,
    Query(query): Query<Close>,
) -> Result<StatusCode, ApiError> {
    service.volumes.close(&volume, query.force, &by(&operator), service.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn by(operator: &str) -> String {
    format!("operator {operator}")
}

async fn digests(
    State(service): State<VaultService>,
    _: ProcessServerPeer,
    Path((server, disk)): Path<(ServerId, DiskNumber)>,
    Json(request): Json<DigestRequest>,
) -> Result<Body, ApiError> {
    Ok(Body::from_stream(service.volumes.digests(server, disk, &request).await?))
}

impl From<VolumesError> for ApiError {
    fn from(error: VolumesError) -> Self {
        match error {
            VolumesError::Vault(error) => error.into(),
            error @ VolumesError::InUse { .. } => {
                Self::new(StatusCode::CONFLICT, "volume_in_use", error.to_string())
            }
            error @ VolumesError::OfMachine { .. } => {
                Self::new(StatusCode::CONFLICT, "volume_of_machine", error.to_string())
            }
            error => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "volume_unusable", error.to_string()),
        }
    }
}
