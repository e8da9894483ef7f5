//! Verifications that operators ask for.

use axum::Json;
use axum::extract::{Path, State};
use lifeboat_api::{ErrorBody, Request, Verify};
use lifeboat_transport::{ApiError, OperatorPeer, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::VaultService;

pub(super) fn routes() -> OpenApiRouter<VaultService> {
    OpenApiRouter::new().routes(routes!(verify))
}

/// Asks for a verification of a server: of everything that is stored, or of the copy against the
/// live disks. The request's report says what was found.
#[utoipa::path(
    post, path = "/v1/servers/{server}/verify", params(("server" = String, Path)), request_body = Verify,
    responses((status = 202, body = Request), (status = "default", body = ErrorBody))
)]
async fn verify(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(server): Path<String>,
    Json(body): Json<Verify>,
) -> Result<(StatusCode, Json<Request>), ApiError> {
    let server = service.vault.find_server(&server).await?;
    let request = service.vault.ask_verification(server, body.kind, service.now()).await?;
    Ok((StatusCode::ACCEPTED, Json(request)))
}
