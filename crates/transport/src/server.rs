//! The listener: accepts connections up to a limit, and stops without losing a request.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{Shared, run_connection};
use crate::refusals::Refusals;
use crate::{RequestIds, ServerTls, with_request_ids};

/// How a listener listens.
#[derive(Clone, Debug)]
pub struct ListenerSettings {
    /// Where.
    pub address: SocketAddr,
    /// Connections at once; more wait in the system's queue.
    pub connections_max: usize,
    /// How long a client may take for the TLS handshake.
    pub handshake_timeout: Duration,
    /// How long a client may take for a request's head, and how long a connection may idle.
    pub header_timeout: Duration,
    /// How long requests may go on after the listener was told to stop.
    pub grace: Duration,
    /// A random number with which the ids of requests begin.
    pub request_id_start: u64,
}

impl ListenerSettings {
    /// The usual settings for a listener at `address`: 1024 connections, 10 s for a handshake,
    /// 60 s for a request's head, 30 s to finish.
    #[must_use]
    pub const fn new(address: SocketAddr, request_id_start: u64) -> Self {
        Self {
            address,
            connections_max: 1024,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            request_id_start,
        }
    }
}

/// A listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another program listens there.
    #[error(
        "port {} on {} is taken by another program: stop that one (ss -ltnp 'sport = :{}' names it) or set another port",
        .0.port(), .0.ip(), .0.port()
    )]
    PortTaken(SocketAddr),
    /// Only root may listen there.
    #[error(
        "port {} on {} needs a right that this program does not have: run it as a service, grant it \
         CAP_NET_BIND_SERVICE, or set a port above 1023",
        .0.port(), .0.ip()
    )]
    PortForbidden(SocketAddr),
    /// This machine does not have the address.
    #[error("this machine does not have the address {}: set one of its own, or 0.0.0.0 for all", .0.ip())]
    NoSuchAddress(SocketAddr),
    /// The system refused for another reason.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// A bound port that does not answer yet. Callers that connect wait until [`Listener::serve`] runs.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    settings: ListenerSettings,
}

/// Binds and serves until `shutdown` completes. See [`Listener`].
///
/// # Errors
/// When the port cannot be had.
pub async fn serve(
    settings: ListenerSettings,
    router: Router,
    tls: Arc<ServerTls>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    Listener::bind(settings).await?.serve(router, tls, shutdown).await;
    Ok(())
}

impl Listener {
    /// Binds the port.
    ///
    /// # Errors
    /// When the port cannot be had, as a sentence with what to do.
    pub async fn bind(settings: ListenerSettings) -> Result<Self, ServeError> {
        let address = settings.address;
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ServeError::PortTaken(address),
            io::ErrorKind::PermissionDenied => ServeError::PortForbidden(address),
            io::ErrorKind::AddrNotAvailable => ServeError::NoSuchAddress(address),
            _ => ServeError::Listen { address, source },
        };
        let socket = TcpListener::bind(address).await.map_err(error)?;
        let address = socket.local_addr().map_err(error)?;
        Ok(Self { socket, address, settings })
    }

    /// Where it listens, with the port that the system chose if the settings said 0.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` completes. Then it accepts no more, lets the requests in flight
    /// finish for up to the grace time, and cuts off what is left. Dropping the future cuts off
    /// everything at once.
    pub async fn serve(self, router: Router, tls: Arc<ServerTls>, shutdown: impl Future<Output = ()> + Send) {
        let Self { socket, address, settings } = self;
        let ids = RequestIds::new(settings.request_id_start);
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let _cut_when_dropped = cut.clone().drop_guard();
        let shared = Arc::new(Shared {
            router: with_request_ids(router, ids.clone()),
            ids,
            tls,
            refusals: Refusals::default(),
            handshake_timeout: settings.handshake_timeout,
            header_timeout: settings.header_timeout,
            stop: stop.clone(),
            cut: cut.clone(),
        });
        let connections = TaskTracker::new();
        tracing::info!(%address, "listening");
        tokio::select! {
            () = shutdown => {}
            () = accept_all(&socket, &shared, &connections, settings.connections_max) => {}
        }
        drop(socket);
        stop.cancel();
        connections.close();
        if tokio::time::timeout(settings.grace, connections.wait()).await.is_err() {
            tracing::warn!(%address, connections = connections.len(), "requests did not finish in time and are cut off");
            cut.cancel();
            connections.wait().await;
        }
        tracing::info!(%address, "no longer listening");
    }
}

async fn accept_all(
    socket: &TcpListener,
    shared: &Arc<Shared>,
    connections: &TaskTracker,
    connections_max: usize,
) {
    let places = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
    loop {
        if places.available_permits() == 0 {
            tracing::warn!(connections_max, "all connections are in use; new callers wait");
        }
        // Nobody closes the semaphore; if it were closed, there would be nothing left to accept.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, address) = accept(socket).await;
        let shared = shared.clone();
        connections.spawn(async move {
            run_connection(stream, address, shared).await;
            drop(place);
        });
    }
}

async fn accept(socket: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match socket.accept().await {
            Ok(accepted) => return accepted,
            // The caller hung up before its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Most likely no more file descriptors: they come back as connections end.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}
