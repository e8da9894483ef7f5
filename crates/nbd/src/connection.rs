//! One connection from accept to close: handshake, TLS, transmission.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::handshake::{Agreement, Handshake, HandshakeError, Step, Tls};
use crate::limits::Limits;
use crate::operation::Terms;
use crate::protocol::greeting;
use crate::registry::{Attachment, Registry};
use crate::transmission::{self, Budget, End};

const HANDSHAKE_READ_BYTES: usize = 4096;

/// What all connections of a server share.
pub(crate) struct Shared {
    pub limits: Limits,
    pub registry: Registry,
    pub connections: Arc<Semaphore>,
    pub server_bytes: Arc<Semaphore>,
    /// No new connections, and an end to unfinished handshakes.
    pub stop: CancellationToken,
}

/// Why a connection did not get as far as transmission.
#[derive(Debug, thiserror::Error)]
enum HandshakeFailure {
    #[error("the handshake took too long")]
    Timeout,
    #[error("the server is shutting down")]
    Stopping,
    #[error("the client closed the connection in the handshake")]
    Closed,
    #[error("the connection broke in the handshake: {0}")]
    Io(#[from] io::Error),
    #[error("TLS could not be set up: {0}")]
    Tls(io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the limit of connections is reached")]
    TooManyConnections,
}

/// A stream that is past the handshake.
struct Ready<S> {
    stream: S,
    input: BytesMut,
    agreement: Agreement<Attachment>,
    _connection: OwnedSemaphorePermit,
}

enum Negotiated {
    Serve(Agreement<Attachment>, OwnedSemaphorePermit),
    StartTls,
    Goodbye,
}

/// Serves a client on a Unix socket. `slot` is its place among the unfinished handshakes.
pub(crate) async fn serve_unix(shared: Arc<Shared>, stream: UnixStream, slot: OwnedSemaphorePermit) {
    let ready = within_limits(&shared, shake_hands(&shared, stream)).await;
    drop(slot);
    match ready {
        Ok(Some(ready)) => {
            transmit(&shared, ready, "unix socket", UnixStream::into_split).await;
        }
        Ok(None) => {}
        Err(failure) => report(&failure, "unix socket"),
    }
}

/// Serves a client on TCP, where nothing is said without TLS.
pub(crate) async fn serve_tcp(
    shared: Arc<Shared>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    peer: String,
    slot: OwnedSemaphorePermit,
) {
    let ready = within_limits(&shared, shake_hands_tls(&shared, stream, &acceptor)).await;
    drop(slot);
    match ready {
        Ok(Some(ready)) => transmit(&shared, ready, &peer, tokio::io::split).await,
        Ok(None) => {}
        Err(failure) => report(&failure, &peer),
    }
}

fn report(failure: &HandshakeFailure, peer: &str) {
    match failure {
        HandshakeFailure::Closed | HandshakeFailure::Stopping => {
            tracing::debug!(peer, reason = %failure, "NBD client left");
        }
        // Some clients, such as nbdinfo, go without a word once they know what they wanted.
        HandshakeFailure::Io(error)
            if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
        {
            tracing::debug!(peer, reason = %failure, "NBD client left");
        }
        _ => tracing::warn!(peer, reason = %failure, "NBD client turned away"),
    }
}

async fn within_limits<T>(
    shared: &Shared,
    work: impl Future<Output = Result<T, HandshakeFailure>>,
) -> Result<T, HandshakeFailure> {
    tokio::select! {
        done = tokio::time::timeout(shared.limits.handshake_timeout, work) => {
            done.map_err(|_| HandshakeFailure::Timeout)?
        }
        () = shared.stop.cancelled() => Err(HandshakeFailure::Stopping),
    }
}

async fn shake_hands(
    shared: &Shared,
    mut stream: UnixStream,
) -> Result<Option<Ready<UnixStream>>, HandshakeFailure> {
    let mut input = BytesMut::new();
    let mut handshake = Handshake::new(Tls::Off);
    stream.write_all(&greeting()).await?;
    match negotiate(shared, &mut stream, &mut handshake, &mut input).await? {
        Negotiated::Serve(agreement, connection) => {
            Ok(Some(Ready { stream, input, agreement, _connection: connection }))
        }
        Negotiated::StartTls | Negotiated::Goodbye => Ok(None),
    }
}

async fn shake_hands_tls(
    shared: &Shared,
    mut stream: TcpStream,
    acceptor: &TlsAcceptor,
) -> Result<Option<Ready<TlsStream<TcpStream>>>, HandshakeFailure> {
    let mut input = BytesMut::new();
    let mut handshake = Handshake::new(Tls::Required);
    stream.write_all(&greeting()).await?;
    let Negotiated::StartTls = negotiate(shared, &mut stream, &mut handshake, &mut input).await? else {
        return Ok(None);
    };
    handshake.tls_started(&input)?;
    let mut stream = acceptor.accept(stream).await.map_err(HandshakeFailure::Tls)?;
    match negotiate(shared, &mut stream, &mut handshake, &mut input).await? {
        Negotiated::Serve(agreement, connection) => {
            Ok(Some(Ready { stream, input, agreement, _connection: connection }))
        }
        Negotiated::StartTls => Ok(None),
        Negotiated::Goodbye => {
            // Tells the client that nobody has cut the stream short.
            let _ = stream.shutdown().await;
            Ok(None)
        }
    }
}

/// Answers options until one of them ends this part of the handshake.
async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared,
    stream: &mut S,
    handshake: &mut Handshake,
    input: &mut BytesMut,
) -> Result<Negotiated, HandshakeFailure> {
    let mut output = BytesMut::new();
    loop {
        let step = handshake.step(input, &mut output, &shared.registry)?;
        let negotiated = match step {
            Step::Serve(agreement) => {
                let connection = Arc::clone(&shared.connections).try_acquire_owned();
                let connection = connection.map_err(|_| HandshakeFailure::TooManyConnections)?;
                Some(Negotiated::Serve(agreement, connection))
            }
            Step::StartTls => Some(Negotiated::StartTls),
            Step::Goodbye => Some(Negotiated::Goodbye),
            Step::Continue => None,
            Step::NeedInput => {
                input.reserve(HANDSHAKE_READ_BYTES);
                if stream.read_buf(input).await? == 0 {
                    return Err(HandshakeFailure::Closed);
                }
                None
            }
        };
        // Sent after every step, so that a client cannot make answers pile up.
        if !output.is_empty() {
            stream.write_all(&output).await?;
            stream.flush().await?;
            output.clear();
        }
        if let Some(negotiated) = negotiated {
            return Ok(negotiated);
        }
    }
}

async fn transmit<S, R, W>(shared: &Shared, ready: Ready<S>, peer: &str, split: impl FnOnce(S) -> (R, W))
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let Ready { stream, input, agreement, _connection } = ready;
    let Agreement { name, info, handle, structured, allocation } = agreement;
    tracing::info!(export = name, peer, structured, "NBD client connected");
    let budget = Budget::new(&shared.limits, Arc::clone(&shared.server_bytes));
    let (source, sink) = split(stream);
    let terms = Terms { info, structured, allocation };
    let end = transmission::serve(source, sink, input, handle, terms, &budget, &shared.limits).await;
    match end {
        End::Disconnected | End::Removed => {
            tracing::info!(export = name, peer, reason = %end, "NBD client gone");
        }
        _ => tracing::warn!(export = name, peer, reason = %end, "NBD connection lost"),
    }
}
