//! One call, from its first header to its answer.

use std::error::Error as StdError;
use std::time::Duration;

use axum::http::{StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client_error::SourceError;
use crate::{ClientError, ClientSettings, Download, ErrorBody, TlsTrouble};

/// Bytes read of a refusal's body.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// A call to be filled in and sent.
#[must_use = "a call does nothing until it is sent"]
pub struct Call {
    peer: String,
    settings: ClientSettings,
    request: Result<reqwest::RequestBuilder, ClientError>,
    timeout: Option<Duration>,
    streams: bool,
}

impl Call {
    pub(crate) fn new(
        peer: String,
        settings: ClientSettings,
        request: Result<reqwest::RequestBuilder, ClientError>,
    ) -> Self {
        Self { peer, settings, request, timeout: None, streams: false }
    }

    /// Adds a query.
    pub fn query(self, query: &(impl Serialize + ?Sized)) -> Self {
        self.change(|request| request.query(query))
    }

    /// Adds a header. Also for what makes the answer mean something else, such as `range`.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.change(|request| request.header(name, value))
    }

    /// How long the call may take, instead of the client's setting. For long polls.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// A JSON body.
    pub fn json(mut self, body: &(impl Serialize + ?Sized)) -> Self {
        match serde_json::to_vec(body) {
            Ok(text) => {
                self.change(|request| request.header(header::CONTENT_TYPE, "application/json").body(text))
            }
            Err(error) => {
                self.request = Err(ClientError::BadRequest(error.to_string()));
                self
            }
        }
    }

    /// A body of bytes.
    pub fn bytes(self, body: Bytes) -> Self {
        self.change(|request| request.header(header::CONTENT_TYPE, "application/octet-stream").body(body))
    }

    /// A body that is sent as it comes; `stream` is asked for more only when the peer takes it.
    /// With `length_bytes` the peer knows from the start how much comes, and sees if less came.
    /// Such a call has no timeout of its own, since the peer may hold it back on purpose.
    pub fn stream<S, E>(mut self, stream: S, length_bytes: Option<u64>) -> Self
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>> + 'static,
    {
        self.streams = true;
        let body = reqwest::Body::wrap_stream(stream.map_err(|error| SourceError(error.into())));
        self.change(|request| {
            let request = request.header(header::CONTENT_TYPE, "application/octet-stream");
            match length_bytes {
                Some(length) => request.header(header::CONTENT_LENGTH, length),
                None => request,
            }
            .body(body)
        })
    }

    fn change(mut self, change: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder) -> Self {
        self.request = self.request.map(change);
        self
    }

    /// Sends it and reads a JSON answer; `()` takes an empty one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let (peer, bytes_max) = (self.peer.clone(), self.settings.json_bytes_max);
        let bytes = self.send_for_bytes(bytes_max).await?;
        let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(text).map_err(|error| ClientError::BadBody { peer, why: error.to_string() })
    }

    /// Sends it and reads an answer of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send_for_bytes(self, bytes_max: usize) -> Result<Bytes, ClientError> {
        let timeout = self.timeout_of_all();
        let peer = self.peer.clone();
        let whole = async {
            let response = send(&self.peer, self.request).await?;
            read_all(&self.peer, response, bytes_max).await
        };
        in_time(&peer, timeout, whole).await
    }

    /// Sends it and gives the answer's body as it comes. The timeout holds until the body begins.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn download(self) -> Result<Download, ClientError> {
        let timeout = self.timeout_of_all();
        let response = in_time(&self.peer, timeout, send(&self.peer, self.request)).await?;
        Ok(Download::new(self.peer, self.settings.stall_timeout, response))
    }

    fn timeout_of_all(&self) -> Option<Duration> {
        self.timeout.or((!self.streams).then_some(self.settings.call_timeout))
    }
}

async fn in_time<T>(
    peer: &str,
    timeout: Option<Duration>,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    match timeout {
        Some(timeout) => {
            tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(ClientError::timeout(peer)))
        }
        None => work.await,
    }
}

/// The answer, if it is a success.
async fn send(
    peer: &str,
    request: Result<reqwest::RequestBuilder, ClientError>,
) -> Result<reqwest::Response, ClientError> {
    let response = request?.send().await.map_err(|error| ClientError::of(peer, &error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    // A refusal whose body is lost is still a refusal.
    let body = read_all(peer, response, ERROR_BYTES_MAX).await.unwrap_or_default();
    Err(refusal(peer, status, &body))
}

fn refusal(peer: &str, status: StatusCode, body: &[u8]) -> ClientError {
    let Ok(ErrorBody { error }) = serde_json::from_slice(body) else {
        let message = format!("{peer} answered {status} and gave no reason");
        return ClientError::Api { status, code: "no_reason".into(), message, request_id: String::new() };
    };
    let trouble = match error.code.as_str() {
        "certificate_revoked" => TlsTrouble::OwnRevoked,
        "certificate_expired" => TlsTrouble::OwnExpired,
        "certificate_required" => TlsTrouble::OwnMissing,
        _ => {
            let crate::ErrorDetail { code, message, request_id } = error;
            return ClientError::Api { status, code, message, request_id };
        }
    };
    ClientError::Tls { peer: peer.to_owned(), trouble }
}

async fn read_all(
    peer: &str,
    mut response: reqwest::Response,
    bytes_max: usize,
) -> Result<Bytes, ClientError> {
    let too_large = || ClientError::BodyTooLarge { peer: peer.to_owned(), bytes_max };
    if response.content_length().is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(too_large());
    }
    let mut all = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| ClientError::of(peer, &error))? {
        if all.len() + chunk.len() > bytes_max {
            return Err(too_large());
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}
