//! The vault over HTTP. Handlers only translate; what they do is in [`Vault`].

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use jiff::Timestamp;
use lifeboat_transport::{ApiError, StatusCode};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::error::VaultError;
use crate::jobs::Jobs;
use crate::revoked::Revoked;
use crate::vault::Vault;
use crate::volumes::Volumes;

mod drills;
mod jobs;
mod networks;
mod operator;
mod process_server;
mod verification;
mod volumes;

/// Requests that wait are answered by then. Less than the grace time of a listener that stops.
const WAIT_MAX: Duration = Duration::from_secs(25);

/// What every handler has.
#[derive(Clone)]
pub struct VaultService {
    /// The vault.
    pub vault: Arc<Vault>,
    /// Its open volumes.
    pub volumes: Arc<Volumes>,
    /// Its jobs.
    pub jobs: Arc<Jobs>,
    /// The certificates that are refused.
    pub revoked: Revoked,
    /// The time, by the vault's clock.
    pub clock: fn() -> Timestamp,
}

impl VaultService {
    fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Lifeboat vault",
        description = "The operator's interface of a Lifeboat vault. Every request runs over mutual TLS \
                       with an operator's certificate. Every answer that is no success has an ErrorBody."
    ),
    components(schemas(lifeboat_api::ErrorBody))
)]
struct Document;

/// The operator's routes with their description. Further modules merge theirs here.
fn operator_api() -> OpenApiRouter<VaultService> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(operator::routes())
        .merge(verification::routes())
        .merge(volumes::routes())
        .merge(jobs::routes())
        .merge(drills::routes())
        .merge(networks::routes())
}

/// All routes.
pub fn router(service: VaultService) -> Router {
    let (operator, _) = operator_api().split_for_parts();
    operator.merge(process_server::routes()).merge(volumes::process_server_routes()).with_state(service)
}

/// The description of the operator's API, as `openapi.json` has it.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    operator_api().into_openapi()
}

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, error.code(), error.to_string())
    }
}

fn wait(wait_ms: Option<u64>) -> Duration {
    Duration::from_millis(wait_ms.unwrap_or(0)).min(WAIT_MAX)
}
