use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{Shared, serve_tcp, serve_unix};
use crate::error::NbdError;
use crate::export::Export;
use crate::limits::Limits;
use crate::protocol::PAYLOAD_BYTES_MAX;
use crate::registry::Registry;
use crate::socket::{bind_unix, keep_alive};

/// Serves exports by name, on any number of sockets.
///
/// Must be used within a Tokio runtime. Dropping it ends everything at once, see
/// [`NbdServer::shutdown`] for the orderly way.
pub struct NbdServer {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl NbdServer {
    /// A server without exports that listens nowhere yet.
    pub fn new(limits: Limits) -> Self {
        let shared = Shared {
            registry: Registry::default(),
            connections: Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS))),
            server_bytes: Arc::new(Semaphore::new(limits.server_bytes_max.max(PAYLOAD_BYTES_MAX) as usize)),
            stop: CancellationToken::new(),
            limits,
        };
        Self { shared: Arc::new(shared), tasks: TaskTracker::new() }
    }

    /// Serves `export` as `name` from now on. The empty name is what clients get that ask for
    /// none.
    pub fn add(&self, name: &str, export: Arc<dyn Export>) -> Result<(), NbdError> {
        self.shared.registry.add(name, export)
    }

    /// Stops serving an export.
    ///
    /// New clients do not find it any more. Requests in flight are finished, later ones answered
    /// with `ESHUTDOWN`, then its connections are closed. After [`Limits::drain_timeout`] what
    /// is left is dropped. When this returns nothing calls the export any more.
    ///
    /// Once begun it takes effect even if the returned future is dropped; only the limit of time
    /// is lost then.
    pub async fn remove(&self, name: &str) -> Result<(), NbdError> {
        self.shared.registry.remove(name, self.shared.limits.drain_timeout).await
    }

    /// Connections that use an export now.
    pub fn clients(&self, name: &str) -> usize {
        self.shared.registry.clients(name)
    }

    /// Names of all exports, sorted.
    pub fn export_names(&self) -> Vec<String> {
        self.shared.registry.names()
    }

    /// Clients that are past the handshake.
    pub fn connection_count(&self) -> usize {
        let all = self.shared.limits.connections_max.min(Semaphore::MAX_PERMITS);
        all - self.shared.connections.available_permits()
    }

    /// Listens on a Unix socket, without TLS. Only this process's user (and root) can connect:
    /// the socket file has mode 0600. A file left by a dead server is replaced; one that somebody
    /// listens on, or that is no socket, is an error.
    pub async fn listen_unix(&self, path: &Path) -> Result<(), NbdError> {
        self.check_running()?;
        let failed = |source: io::Error| NbdError::ListenUnix { path: path.to_owned(), source };
        let owned = path.to_owned();
        let bound = tokio::task::spawn_blocking(move || bind_unix(&owned)).await;
        let (listener, file) = bound.map_err(|error| failed(io::Error::other(error)))??;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let (shared, tasks) = (Arc::clone(&self.shared), self.tasks.clone());
        self.tasks.spawn(async move {
            let accept = async || Ok(listener.accept().await?.0);
            accept_loop(&shared, accept, |stream, slot| {
                tasks.spawn(serve_unix(Arc::clone(&shared), stream, slot));
            })
            .await;
            drop(file);
        });
        tracing::info!(path = %path.display(), "NBD server listens");
        Ok(())
    }

    /// Listens on TCP, where clients must begin TLS before anything else. Whether they need a
    /// certificate is up to `tls`, which is asked at each connection, so that a certificate can be
    /// renewed. Returns the address, of interest if the port was 0.
    pub async fn listen_tcp(
        &self,
        address: SocketAddr,
        tls: impl Fn() -> Arc<rustls::ServerConfig> + Send + Sync + 'static,
    ) -> Result<SocketAddr, NbdError> {
        self.check_running()?;
        let failed = |source: io::Error| NbdError::ListenTcp { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let (shared, tasks) = (Arc::clone(&self.shared), self.tasks.clone());
        self.tasks.spawn(async move {
            let accept = async || listener.accept().await;
            accept_loop(&shared, accept, |(stream, peer), slot| {
                if let Err(error) = prepare_tcp(&stream) {
                    tracing::warn!(%peer, %error, "TCP options could not be set");
                }
                let acceptor = TlsAcceptor::from(tls());
                let serve = serve_tcp(Arc::clone(&shared), stream, acceptor, peer.to_string(), slot);
                tasks.spawn(serve);
            })
            .await;
        });
        tracing::info!(address = %bound, "NBD server listens, TLS required");
        Ok(bound)
    }

    /// Stops listening, finishes requests in flight, and waits until every connection is closed.
    ///
    /// Requests that were not begun are not answered: to a client that connects again to the next
    /// server of these exports, such as QEMU with `reconnect-delay`, a refusal would be final.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.registry.close(self.shared.limits.drain_timeout).await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn check_running(&self) -> Result<(), NbdError> {
        if self.shared.stop.is_cancelled() { Err(NbdError::ShuttingDown) } else { Ok(()) }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.registry.abort();
    }
}

fn prepare_tcp(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    keep_alive(stream)
}

/// Accepts until the server stops. Each client needs a slot for its handshake.
async fn accept_loop<S, A>(
    shared: &Shared,
    mut accept: impl FnMut() -> A,
    mut serve: impl FnMut(S, OwnedSemaphorePermit),
) where
    A: Future<Output = io::Result<S>>,
{
    let handshakes = Arc::new(Semaphore::new(shared.limits.handshakes_max.min(Semaphore::MAX_PERMITS)));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok(stream) => match Arc::clone(&handshakes).try_acquire_owned() {
                Ok(slot) => serve(stream, slot),
                Err(_) => tracing::warn!("NBD client turned away: too many unfinished handshakes"),
            },
            Err(error) => {
                tracing::warn!(%error, "accepting an NBD client failed");
                // Out of file descriptors, most likely; trying again at once would only spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
