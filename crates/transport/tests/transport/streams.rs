//! Bodies that are larger than anyone wants to hold.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, put};
use axum::{Json, Router};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use lifeboat_transport::{ApiError, ClientError, Method, UnreachableReason};
use tokio::sync::{Notify, mpsc};

use crate::site::{Site, agent, is_unreachable};

const PIECE_BYTES: usize = 64 << 10;
const PIECES: u64 = 2048;
/// What sockets and TLS may hold between the two ends: Linux lets a socket's buffers grow to tens of MiB.
const UNDERWAY_BYTES_MAX: u64 = 64 << 20;

fn piece(number: u64) -> Bytes {
    let mut bytes = vec![0; PIECE_BYTES];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = (number.wrapping_mul(31) ^ place as u64).to_le_bytes()[0];
    }
    bytes.into()
}

fn pieces(sent: Arc<AtomicU64>) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + 'static {
    futures::stream::iter((0..PIECES).map(move |number| {
        sent.fetch_add(PIECE_BYTES as u64, Ordering::SeqCst);
        Ok(piece(number))
    }))
}

fn digest_of_all() -> String {
    let mut hasher = blake3::Hasher::new();
    for number in 0..PIECES {
        hasher.update(&piece(number));
    }
    hasher.finalize().to_string()
}

/// Takes an upload more slowly than it comes, and answers its digest and the most that was underway.
async fn take_slowly(
    State(sent): State<Arc<AtomicU64>>,
    body: Body,
) -> Result<Json<(String, u64)>, ApiError> {
    let mut stream = body.into_data_stream();
    let mut hasher = blake3::Hasher::new();
    let (mut taken, mut underway_most) = (0, 0);
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|error| ApiError::bad_request("torn", error.to_string()))?;
        for _ in 0..20 {
            tokio::task::yield_now().await;
            hasher = tokio::task::spawn_blocking(move || hasher).await.unwrap();
        }
        hasher.update(&bytes);
        taken += bytes.len() as u64;
        underway_most = underway_most.max(sent.load(Ordering::SeqCst) - taken);
    }
    Ok(Json((hasher.finalize().to_string(), underway_most)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_arrives_whole_and_is_held_back_by_its_taker() {
    let site = Site::new();
    for length in [None, Some(PIECES * PIECE_BYTES as u64)] {
        let sent = Arc::new(AtomicU64::new(0));
        let router = Router::new().route("/take", put(take_slowly)).with_state(sent.clone());
        let server = site.serve(router).await;
        let client = site.client(&server, &agent());
        let call = client.call(Method::PUT, "/take").stream(pieces(sent.clone()), length);
        let (digest, underway_most) = call.send::<(String, u64)>().await.unwrap();
        assert_eq!(sent.load(Ordering::SeqCst), PIECES * PIECE_BYTES as u64);
        assert_eq!(digest, digest_of_all());
        assert!(underway_most < UNDERWAY_BYTES_MAX, "{underway_most} bytes were held somewhere");
    }
}

#[tokio::test]
async fn a_refusal_before_the_upload_was_read_still_arrives() {
    let site = Site::new();
    let refuse = || async { ApiError::no_room("spool_full", "the spool is full; wait or make room") };
    let server = site.serve(Router::new().route("/take", put(refuse))).await;
    let client = site.client(&server, &agent());
    for _ in 0..20 {
        let call = client.call(Method::PUT, "/take").stream(pieces(Arc::default()), None);
        let error = call.send::<()>().await.unwrap_err();
        assert_eq!(error.code(), Some("spool_full"), "{error:?}");
    }
}

/// Tells how a handler ended, also when it was dropped because its caller was gone.
struct End {
    well: bool,
    tell: mpsc::UnboundedSender<bool>,
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.tell.send(self.well);
    }
}

#[tokio::test]
async fn an_upload_whose_source_fails_is_an_error_at_both_ends() {
    let site = Site::new();
    let (ended_well, mut how) = mpsc::unbounded_channel();
    let begun = Arc::new(Notify::new());
    let begin = begun.clone();
    let take = move |body: Body| async move {
        begin.notify_one();
        let mut end = End { well: false, tell: ended_well.clone() };
        let mut stream = body.into_data_stream();
        while let Some(next) = stream.next().await {
            if next.is_err() {
                return;
            }
        }
        end.well = true;
    };
    let server = site.serve(Router::new().route("/take", put(take))).await;
    let client = site.client(&server, &agent());
    let torn = futures::stream::iter([Ok(piece(0)), Ok(piece(1))]).chain(futures::stream::once(async move {
        begun.notified().await;
        Err(io::Error::other("bad sector 7 of /dev/sda"))
    }));
    let error = client.call(Method::PUT, "/take").stream(torn, None).send::<()>().await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Source { why, .. } if why == "bad sector 7 of /dev/sda"),
        "{error:?}"
    );
    assert!(!error.is_retryable());
    assert!(!how.recv().await.unwrap(), "the server must not take it for the end");
}

#[tokio::test]
async fn a_large_download_arrives_whole() {
    let site = Site::new();
    let give = || async { Body::from_stream(pieces(Arc::default())) };
    let server = site.serve(Router::new().route("/give", get(give))).await;
    let download = site.client(&server, &agent()).call(Method::GET, "/give").download().await.unwrap();
    let mut stream = std::pin::pin!(download.into_stream());
    let mut hasher = blake3::Hasher::new();
    while let Some(bytes) = stream.next().await {
        hasher.update(&bytes.unwrap());
    }
    assert_eq!(hasher.finalize().to_string(), digest_of_all());
}

#[tokio::test]
async fn a_download_that_is_cut_short_is_an_error() {
    let site = Site::new();
    let tear = Arc::new(Notify::new());
    let torn = tear.clone();
    let give = move || async move {
        let begin = futures::stream::iter([Ok(piece(0)), Ok(piece(1))]);
        let end = futures::stream::once(async move {
            torn.notified().await;
            Err(io::Error::other("bad frame"))
        });
        Body::from_stream(begin.chain(end))
    };
    let server = site.serve(Router::new().route("/give", get(give))).await;
    let mut download = site.client(&server, &agent()).call(Method::GET, "/give").download().await.unwrap();
    assert!(download.chunk().await.unwrap().is_some());
    tear.notify_one();
    let error = loop {
        match download.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end was taken for a whole body"),
            Err(error) => break error,
        }
    };
    assert!(is_unreachable(&error, &UnreachableReason::ConnectionLost), "{error:?}");
}
