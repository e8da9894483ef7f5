//! Networks at the recovery site, and which stand in for those of the protected site.

use axum::Json;
use axum::extract::{Path, State};
use lifeboat_api::{CreateNetwork, ErrorBody, Network, NetworkMapping};
use lifeboat_transport::{ApiError, OperatorPeer, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::VaultService;

pub(super) fn routes() -> OpenApiRouter<VaultService> {
    OpenApiRouter::new()
        .routes(routes!(networks, create))
        .routes(routes!(network, delete))
        .routes(routes!(mappings, map))
}

/// All networks, by name, with the machines in them.
#[utoipa::path(
    get, path = "/v1/networks",
    responses((status = 200, body = Vec<Network>), (status = "default", body = ErrorBody))
)]
async fn networks(
    State(service): State<VaultService>,
    _: OperatorPeer,
) -> Result<Json<Vec<Network>>, ApiError> {
    Ok(Json(service.jobs.networks().await?))
}

/// Makes a network. It takes nothing until a machine is in it.
#[utoipa::path(
    post, path = "/v1/networks", request_body = CreateNetwork,
    responses((status = 201, body = Network), (status = "default", body = ErrorBody))
)]
async fn create(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Json(body): Json<CreateNetwork>,
) -> Result<(StatusCode, Json<Network>), ApiError> {
    Ok((StatusCode::CREATED, Json(service.jobs.create_network(&body).await?)))
}

/// One network. `{network}` is its name, its id or a unique beginning of either.
#[utoipa::path(
    get, path = "/v1/networks/{network}", params(("network" = String, Path)),
    responses((status = 200, body = Network), (status = "default", body = ErrorBody))
)]
async fn network(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(network): Path<String>,
) -> Result<Json<Network>, ApiError> {
    Ok(Json(service.jobs.network(&network).await?))
}

/// Deletes a network that nothing uses.
#[utoipa::path(
    delete, path = "/v1/networks/{network}", params(("network" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
async fn delete(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Path(network): Path<String>,
) -> Result<StatusCode, ApiError> {
    service.jobs.delete_network(&network).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which networks stand in for those of the protected site, the narrowest subnet first.
#[utoipa::path(
    get, path = "/v1/network-mappings",
    responses((status = 200, body = Vec<NetworkMapping>), (status = "default", body = ErrorBody))
)]
async fn mappings(
    State(service): State<VaultService>,
    _: OperatorPeer,
) -> Result<Json<Vec<NetworkMapping>>, ApiError> {
    Ok(Json(service.jobs.network_mappings().await?))
}

/// Sets which networks stand in for one of the protected site; answers all mappings.
#[utoipa::path(
    put, path = "/v1/network-mappings", request_body = NetworkMapping,
    responses((status = 200, body = Vec<NetworkMapping>), (status = "default", body = ErrorBody))
)]
async fn map(
    State(service): State<VaultService>,
    _: OperatorPeer,
    Json(body): Json<NetworkMapping>,
) -> Result<Json<Vec<NetworkMapping>>, ApiError> {
    service.jobs.map_network(&body).await?;
    Ok(Json(service.jobs.network_mappings().await?))
}
