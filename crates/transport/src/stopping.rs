//! How a handler that holds its answer back hears that its listener stops.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio_util::sync::CancellationToken;

/// Says when the listener of a request stops. A handler that waits for something to tell gives its
/// answer then; otherwise the listener waits for it until its grace time is over.
#[derive(Clone, Debug, Default)]
pub struct Stopping(CancellationToken);

impl Stopping {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self(stop)
    }

    /// Returns when the listener stops. Never for a request that came through none, as in tests.
    pub async fn stopped(&self) {
        self.0.cancelled().await;
    }
}

impl<S: Sync> FromRequestParts<S> for Stopping {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}
