//! An id for each request, and one form for every refusal, whoever made it.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use crate::ApiError;

const HEADER: &str = "x-request-id";
const MESSAGE_BYTES_MAX: u64 = 16 << 10;

/// The id of a request, in the request's extensions, in the header `x-request-id` of the answer,
/// in error bodies and in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub String);

/// Gives out the ids: a number drawn when the program starts, and a counter.
#[derive(Clone, Debug)]
pub struct RequestIds {
    start: u64,
    count: Arc<AtomicU64>,
}

impl RequestIds {
    /// Ids that begin with `start`, a random number.
    #[must_use]
    pub fn new(start: u64) -> Self {
        Self { start, count: Arc::default() }
    }

    pub(crate) fn next(&self) -> RequestId {
        RequestId(format!("{:016x}-{}", self.start, self.count.fetch_add(1, Ordering::Relaxed)))
    }
}

/// Wraps a router so that each request has an id, each refusal is an [`ApiError`] body (those that
/// axum makes by itself too), and a handler that panics answers 500. [`crate::serve`] does this.
pub fn with_request_ids(router: Router, ids: RequestIds) -> Router {
    router.layer(from_fn_with_state(ids, answer))
}

async fn answer(State(ids): State<RequestIds>, mut request: Request, next: Next) -> Response {
    let id = ids.next();
    request.extensions_mut().insert(id.clone());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => ApiError::internal("a handler panicked").into_response(),
    };
    let response = finish(response, &id).await;
    let status = response.status().as_u16();
    tracing::debug!(request_id = %id.0, %method, path, status, "answered");
    response
}

/// Puts the request's id into an answer, and an error body where there is none.
pub(crate) async fn finish(mut response: Response, id: &RequestId) -> Response {
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => Some(error),
        None => plain_refusal(&mut response).await,
    };
    if let Some(mut error) = error {
        error.request_id = Some(id.0.clone());
        if error.status.is_server_error() {
            tracing::warn!(request_id = %id.0, status = error.status.as_u16(), code = %error.code, "{}", error.message);
        } else {
            tracing::debug!(request_id = %id.0, status = error.status.as_u16(), code = %error.code, "{}", error.message);
        }
        error.fill(&mut response);
    }
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

/// What axum or a handler refused in plain text.
async fn plain_refusal(response: &mut Response) -> Option<ApiError> {
    let status = response.status();
    let plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|kind| kind.to_str().is_ok_and(|kind| kind.starts_with("text/plain")));
    let short = response.body().size_hint().upper().is_some_and(|bytes| bytes <= MESSAGE_BYTES_MAX);
    if !(status.is_client_error() || status.is_server_error()) || !plain || !short {
        return None;
    }
    let body = std::mem::replace(response.body_mut(), Body::empty());
    let bytes = http_body_util::BodyExt::collect(body).await.ok()?.to_bytes();
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let (code, fallback) = match status {
        StatusCode::NOT_FOUND => {
            ("no_such_path", "the server has no such path; do both ends have the same version?")
        }
        StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "the path does not take this method"),
        StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "the request's body is too large"),
        StatusCode::UNAUTHORIZED => ("certificate_required", "a certificate of this site is needed"),
        StatusCode::FORBIDDEN => ("forbidden", "this certificate does not allow it"),
        status if status.is_server_error() => {
            ("internal", "the server failed; its log says more under this request id")
        }
        _ => ("bad_request", "the server does not take this request"),
    };
    let message = if text.is_empty() { fallback.to_owned() } else { text };
    Some(ApiError { status, code: Cow::Borrowed(code), message, request_id: None })
}
