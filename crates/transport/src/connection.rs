//! One connection: handshake, requests, and an end that lets the last answer arrive.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use lifeboat_trust::CertificateFacts;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::refusals::{Refusals, handshake_reason};
use crate::request_id::finish;
use crate::stopping::Stopping;
use crate::{ApiError, Peer, RequestIds, ServerTls};

/// After this long without a sign of life from the other machine its connection is over.
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// How long and how much a caller may go on sending after its last answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: u64 = 8 << 20;

/// What all connections of a listener share.
pub(crate) struct Shared {
    pub(crate) router: Router,
    pub(crate) ids: RequestIds,
    pub(crate) tls: Arc<ServerTls>,
    pub(crate) refusals: Refusals,
    pub(crate) handshake_timeout: Duration,
    pub(crate) header_timeout: Duration,
    /// Finish the request in flight, then end.
    pub(crate) stop: CancellationToken,
    /// End at once.
    pub(crate) cut: CancellationToken,
}

pub(crate) async fn run_connection(stream: TcpStream, address: SocketAddr, shared: Arc<Shared>) {
    let cut = shared.cut.clone();
    tokio::select! {
        () = cut.cancelled() => {}
        () = serve_connection(stream, address, shared) => {}
    }
}

async fn serve_connection(stream: TcpStream, address: SocketAddr, shared: Arc<Shared>) {
    if let Err(error) = set_options(&stream) {
        tracing::debug!(%address, "cannot set socket options: {error}");
    }
    let handshake = TlsAcceptor::from(shared.tls.config()).accept(stream).into_fallible();
    let shaken = tokio::select! {
        () = shared.stop.cancelled() => return,
        shaken = tokio::time::timeout(shared.handshake_timeout, handshake) => shaken,
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, stream))) => {
            match handshake_reason(&error) {
                Some(reason) => shared.refusals.log(address.ip(), &reason),
                None => tracing::debug!(%address, "hung up during the handshake"),
            }
            return linger(stream).await;
        }
        Err(_) => {
            let reason =
                format!("it did not finish the TLS handshake in {} s", shared.handshake_timeout.as_secs());
            return shared.refusals.log(address.ip(), &reason);
        }
    };
    match peer_of(&stream, address) {
        Ok(peer) => serve_requests(stream, address, peer, &shared).await,
        Err(error) => shared.refusals.log(address.ip(), &error.to_string()),
    }
}

fn set_options(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, DEAD_AFTER / 4)?;
    sockopt::set_tcp_keepintvl(stream, DEAD_AFTER / 4)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(DEAD_AFTER.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

/// The caller by its certificate; `None` if it showed none and the listener allows that.
fn peer_of(
    stream: &TlsStream<TcpStream>,
    address: SocketAddr,
) -> Result<Option<Peer>, lifeboat_trust::TrustError> {
    let Some(certificate) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
        return Ok(None);
    };
    let facts = CertificateFacts::read(certificate)?;
    Ok(Some(Peer { identity: facts.identity, serial: facts.serial, address, not_after: facts.not_after }))
}

async fn serve_requests(
    stream: TlsStream<TcpStream>,
    address: SocketAddr,
    peer: Option<Peer>,
    shared: &Arc<Shared>,
) {
    let for_requests = shared.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        // Boxed, since hyper hands the connection back only if this can be moved.
        let answer: Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>> =
            Box::pin(answer(request, address, peer.clone(), for_requests.clone()));
        answer
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.header_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break ended,
            () = shared.stop.cancelled(), if !stopping => {
                stopping = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, "the connection ended: {error}");
    }
    linger(connection.into_parts().io.into_inner()).await;
}

async fn answer(
    mut request: Request<Incoming>,
    address: SocketAddr,
    peer: Option<Peer>,
    shared: Arc<Shared>,
) -> Result<Response, Infallible> {
    request.extensions_mut().insert(ConnectInfo(address));
    request.extensions_mut().insert(Stopping::new(shared.stop.clone()));
    if let Some(peer) = peer {
        if let Some(error) = no_longer_good(&peer, &shared, Timestamp::now()) {
            let mut response = finish(error.into_response(), &shared.ids.next()).await;
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return Ok(response);
        }
        request.extensions_mut().insert(peer);
    }
    shared.router.clone().oneshot(request.map(Body::new)).await
}

/// A connection lives longer than the moment at which its certificate was checked.
fn no_longer_good(peer: &Peer, shared: &Shared, now: Timestamp) -> Option<ApiError> {
    if shared.tls.revocations().contains(&peer.serial) {
        let message = format!(
            "the certificate of {} ({}) is revoked; enrol this machine again",
            peer.identity, peer.serial
        );
        return Some(ApiError::forbidden("certificate_revoked", message));
    }
    if now > peer.not_after {
        let message = format!("the certificate of {} expired at {}; renew it", peer.identity, peer.not_after);
        return Some(ApiError::forbidden("certificate_expired", message));
    }
    None
}

/// Ends a connection so that what was sent last arrives: closing a socket that still has unread
/// bytes makes the system throw away what the other side has not read yet.
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let end = async {
        stream.shutdown().await?;
        let mut unread = (&mut stream).take(LINGER_BYTES_MAX);
        tokio::io::copy(&mut unread, &mut tokio::io::sink()).await
    };
    // Whether the caller was still there to hear it makes no difference now.
    let _ = tokio::time::timeout(LINGER, end).await;
}
