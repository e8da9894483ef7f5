//! The one form of every refusal: a status, a stable code, a sentence, a request id.

use std::borrow::Cow;
use std::fmt;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// A refusal or failure, as a handler returns it and as the caller reads it:
/// `{"error": {"code", "message", "request_id"}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A word for programs, in snake case; it never changes its meaning.
    pub code: Cow<'static, str>,
    /// A sentence for people: what, which, why, and what to do.
    pub message: String,
    /// The request in the server's log; the server fills it in.
    pub request_id: Option<String>,
}

/// The JSON body of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The only member.
    pub error: ErrorDetail,
}

/// What the JSON body of a refusal says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// See [`ApiError::code`].
    pub code: String,
    /// See [`ApiError::message`].
    pub message: String,
    /// See [`ApiError::request_id`]; empty when unknown.
    #[serde(default)]
    pub request_id: String,
}

impl ApiError {
    /// A refusal with a status of its own.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code: Cow::Borrowed(code), message: message.into(), request_id: None }
    }

    /// 400: the request cannot be meant.
    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 403: not with this certificate.
    pub fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    /// 404: there is no such thing.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 409: not in the present state.
    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// 503: not now; a retry can help.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// 507: no room; a retry can help once there is some.
    pub fn no_room(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, code, message)
    }

    /// 500: a failure of ours. `cause` goes to the caller too, who is known by its certificate.
    pub fn internal(cause: impl fmt::Display) -> Self {
        let message = format!("the server failed: {cause}; its log says more under this request id");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// The JSON text of the body.
    fn body(&self) -> Vec<u8> {
        let body = ErrorBody {
            error: ErrorDetail {
                code: self.code.to_string(),
                message: self.message.clone(),
                request_id: self.request_id.clone().unwrap_or_default(),
            },
        };
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// Makes this the content of `response`, whose other headers stay.
    pub(crate) fn fill(&self, response: &mut Response) {
        *response.status_mut() = self.status;
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *response.body_mut() = Body::from(self.body());
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        self.fill(&mut response);
        // For the layer that knows the request's id.
        response.extensions_mut().insert(self);
        response
    }
}
