//! An answer that is read as it comes.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use futures::Stream;

use crate::ClientError;

/// The body of an answer, read as it comes. A body that ends too early is an error, never an end.
#[derive(Debug)]
pub struct Download {
    peer: String,
    stall_timeout: Duration,
    response: reqwest::Response,
}

impl Download {
    pub(crate) fn new(peer: String, stall_timeout: Duration, response: reqwest::Response) -> Self {
        Self { peer, stall_timeout, response }
    }

    /// The status, which is a success: 200, 206 or their like.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The answer's headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Bytes of the whole body, if the peer says so. Not to be allocated unseen.
    #[must_use]
    pub fn length_bytes(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the connection ends before the body does, or nothing came for the client's stall timeout.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        match tokio::time::timeout(self.stall_timeout, self.response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| ClientError::of(&self.peer, &error)),
            Err(_) => Err(ClientError::timeout(&self.peer)),
        }
    }

    /// The body as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, ClientError>> + Send {
        futures::stream::try_unfold(self, |mut download| async move {
            Ok(download.chunk().await?.map(|chunk| (chunk, download)))
        })
    }
}
