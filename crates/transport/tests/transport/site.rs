//! A site with an authority, and servers of it that run inside the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use jiff::Timestamp;
use lifeboat_model::ServerId;
use lifeboat_transport::{Client, ClientError, Listener, ListenerSettings, ServerTls, UnreachableReason};
use lifeboat_trust::{
    ClientCertificates, Credentials, Identity, IssuedCertificate, Revocations, SiteAuthority,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const DAY: Duration = Duration::from_secs(86_400);

pub struct Site {
    pub dir: tempfile::TempDir,
    pub authority: SiteAuthority,
}

impl Site {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Made long ago, so that expired certificates of it can be issued.
        let authority = SiteAuthority::create(&dir.path().join("authority"), "test", ago(DAY * 100)).unwrap();
        Self { dir, authority }
    }

    pub fn issue(&self, identity: &Identity) -> IssuedCertificate {
        self.issue_at(identity, Timestamp::now())
    }

    pub fn issue_at(&self, identity: &Identity, at: Timestamp) -> IssuedCertificate {
        self.authority.issue(identity, &["localhost".into(), "127.0.0.1".into()], DAY, at).unwrap()
    }

    pub fn credentials(&self, identity: &Identity) -> Credentials {
        self.issue(identity).credentials().unwrap()
    }

    pub fn client(&self, server: &Server, identity: &Identity) -> Client {
        Client::new(&server.url(), &self.credentials(identity)).unwrap()
    }

    pub async fn serve(&self, router: Router) -> Server {
        let credentials = self.credentials(&Identity::Vault);
        Server::start(router, &credentials, ClientCertificates::Required, settings()).await
    }
}

pub fn ago(by: Duration) -> Timestamp {
    Timestamp::now() - by
}

pub fn agent() -> Identity {
    Identity::Agent(ServerId::new(0xbeef))
}

pub fn operator() -> Identity {
    Identity::Operator("anna".into())
}

pub fn settings() -> ListenerSettings {
    ListenerSettings::new(SocketAddr::from(([127, 0, 0, 1], 0)), 0x51)
}

pub struct Server {
    pub address: SocketAddr,
    pub tls: Arc<ServerTls>,
    pub revocations: Revocations,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
}

impl Server {
    pub async fn start(
        router: Router,
        credentials: &Credentials,
        clients: ClientCertificates,
        settings: ListenerSettings,
    ) -> Self {
        let revocations = Revocations::new();
        let tls = Arc::new(ServerTls::new(credentials, clients, revocations.clone()).unwrap());
        let listener = Listener::bind(settings).await.unwrap();
        let address = listener.local_address();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = listener.serve(router, tls.clone(), async move {
            let _ = stopped.await;
        });
        let running = Some(tokio::spawn(serving));
        Self { address, tls, revocations, stop: Some(stop), running }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Tells it to stop; the handle ends when it has.
    pub fn stop(&mut self) -> JoinHandle<()> {
        self.stop.take().unwrap().send(()).unwrap();
        self.running.take().unwrap()
    }
}

pub fn is_unreachable(error: &ClientError, wanted: &UnreachableReason) -> bool {
    matches!(error, ClientError::Unreachable { reason, .. } if reason == wanted)
}
