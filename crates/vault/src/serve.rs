//! The vault as a program: settings in, until it is told to stop.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_compute::Provider;
use lifeboat_transport::{Listener, ListenerSettings, ServeError as ListenError, ServerTls};
use lifeboat_trust::{ClientCertificates, Credentials, Identity, TrustError};
use lifeboat_wire::event::{Event, Severity};

use crate::error::VaultError;
use crate::http::{self, VaultService};
use crate::jobs::Jobs;
use crate::machines::{self, MachinesError};
use crate::object_name::VAULTS;
use crate::random::{self, SystemRandomness};
use crate::retention;
use crate::revoked::{Revoked, RevokedError};
use crate::settings::Settings;
use crate::state_directory::StateError;
use crate::store::Store;
use crate::vault::Vault;
use crate::verification;
use crate::volumes::{Volumes, VolumesError};

/// How often renewed certificates are looked for.
const CREDENTIALS_EVERY: Duration = Duration::from_secs(60);
/// How often it is told that the certificate ends soon.
const CERTIFICATE_TOLD_EVERY: Duration = Duration::from_secs(86_400);
/// How often requests that nobody answers are looked through.
const REQUESTS_EVERY: Duration = Duration::from_secs(60);

/// The vault cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The vault cannot be used.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The certificate is that of another role.
    #[error(
        "the certificate in {} is {identity}, not lifeboat://vault; issue one for the vault",
        directory.display()
    )]
    Role {
        /// The directory of the credentials.
        directory: std::path::PathBuf,
        /// Whose certificate it is.
        identity: Identity,
    },
    /// The list of revoked certificates cannot be used.
    #[error(transparent)]
    Revoked(#[from] RevokedError),
    /// Volumes cannot be served.
    #[error(transparent)]
    Volumes(#[from] VolumesError),
    /// Machines cannot be run.
    #[error(transparent)]
    Machines(#[from] MachinesError),
    /// The port cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The state directory holds no vault, but the store does.
    #[error(
        "{} holds no vault, but the store {store} does: put master.key back into the state directory \
         from a backup, then run: lifeboat vault rebuild-catalog",
        state.display()
    )]
    StateLost {
        /// The state directory.
        state: std::path::PathBuf,
        /// The store.
        store: String,
    },
}

/// Serves a vault until `shutdown` completes. Where state directory and store are both empty, the
/// vault is made first.
///
/// # Errors
/// When settings, certificate, state, store or port cannot be used, each as a sentence.
pub async fn serve(settings: Settings, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
    RunningVault::start(settings).await?.run(shutdown).await;
    Ok(())
}

/// A vault whose port is bound.
pub struct RunningVault {
    settings: Settings,
    service: VaultService,
    tls: Arc<ServerTls>,
    nbd_tls: Arc<ServerTls>,
    listener: Listener,
}

impl RunningVault {
    /// Opens or makes the vault and binds its port. Callers wait until [`RunningVault::run`].
    ///
    /// # Errors
    /// As [`serve`].
    pub async fn start(settings: Settings) -> Result<Self, ServeError> {
        let now = Timestamp::now();
        let credentials = Credentials::load(&settings.credentials, now)?;
        if *credentials.identity() != Identity::Vault {
            let (directory, identity) = (settings.credentials.clone(), credentials.identity().clone());
            return Err(ServeError::Role { directory, identity });
        }
        let revoked = Revoked::default();
        if let Some(path) = &settings.revocations {
            revoked.load(path)?;
        }
        let tls = ServerTls::new(&credentials, ClientCertificates::Required, revoked.revocations.clone())?;
        let ids = random::number(&SystemRandomness).map_err(VaultError::from)?;
        // Bound before the state is touched: of two vaults started by mistake, one stops here.
        let listener = Listener::bind(ListenerSettings::new(settings.listen, ids)).await?;
        let store = match &settings.store {
            Some(url) => Some(Store::open(url).map_err(VaultError::from)?),
            None => None,
        };
        let vault = Arc::new(open_or_create(&settings.state, store, now).await?);
        tracing::info!(vault = %vault.id(), store = vault.store().url(), "the vault is open");
        if let Err(error) = vault.note(started_event(now)).await {
            tracing::warn!(%error, "the start could not be noted as an event");
        }
        let operators_only = ClientCertificates::OperatorsOnly;
        let nbd_tls = Arc::new(ServerTls::new(&credentials, operators_only, revoked.revocations.clone())?);
        let shown = Arc::clone(&nbd_tls);
        let volumes = Volumes::start(Arc::clone(&vault), &settings.nbd, move || shown.config()).await?;
        let volumes = Arc::new(volumes);
        let provider = machines::provider(&settings, vault.id(), volumes.over_tls()).await?;
        look_at(Arc::clone(&provider));
        let jobs = Jobs::new(Arc::clone(&volumes), provider, Timestamp::now, Arc::new(()));
        jobs.set_limits(settings.machines.limits());
        jobs.set_hydration(settings.machines.hydration.wanted());
        let service = VaultService { vault, volumes, jobs, revoked, clock: Timestamp::now };
        Ok(Self { settings, service, tls: Arc::new(tls), nbd_tls, listener })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> std::net::SocketAddr {
        self.listener.local_address()
    }

    /// The vault.
    #[must_use]
    pub const fn vault(&self) -> &Arc<Vault> {
        &self.service.vault
    }

    /// Serves until `shutdown` completes, then closes the catalog.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let Self { settings, service, tls, nbd_tls, listener } = self;
        if let Err(error) = service.jobs.resume().await {
            tracing::error!(%error, "jobs of before the restart do not go on");
        }
        let router = http::router(service.clone());
        let listening = listener.serve(router, Arc::clone(&tls), shutdown);
        let background = async {
            tokio::join!(
                tls.reload_on_change(settings.credentials.clone(), CREDENTIALS_EVERY),
                nbd_tls.reload_on_change(settings.credentials.clone(), CREDENTIALS_EVERY),
                tell_of_certificate(&service.vault, &settings.credentials),
                follow_revocations(&service.revoked, settings.revocations.as_deref()),
                expire_requests(&service.vault),
                service.volumes.retry_now_and_then(),
                service.volumes.end_leases(service.clock),
                service.jobs.drill_regularly(),
                service.jobs.watch_machines(),
                retention::run(
                    Arc::clone(&service.vault),
                    settings.retention_interval.duration(),
                    settings.merge.into(),
                ),
                verification::run(Arc::clone(&service.vault), settings.verify_bytes_per_second),
            )
        };
        tokio::select! {
            () = listening => {}
            _ = background => {}
        }
        service.jobs.pause().await;
        if settings.machines.stop_with_vault {
            service.jobs.power_off_all().await;
        }
        service.volumes.stop().await;
        if let Err(error) = service.vault.note_all_heard().await {
            tracing::warn!(%error, "it could not be noted when agents were last heard of");
        }
        service.vault.close().await;
    }
}

async fn open_or_create(state: &Path, store: Option<Store>, now: Timestamp) -> Result<Vault, ServeError> {
    let randomness = Arc::new(SystemRandomness);
    match Vault::open(state, store.clone(), randomness.clone(), now).await {
        Err(VaultError::State(StateError::Missing { .. })) => {
            if let Some(store) = &store
                && !store.folders(VAULTS).await.map_err(VaultError::from)?.is_empty()
            {
                return Err(ServeError::StateLost { state: state.to_owned(), store: store.url().to_owned() });
            }
            let vault = Vault::create(state, store, randomness, now).await?;
            tracing::info!(
                vault = %vault.id(), master_key = %state.join("master.key").display(),
                "made a new vault; back up its master key: nothing can be read without it"
            );
            Ok(vault)
        }
        opened => Ok(opened?),
    }
}

/// Finds out what the hypervisor can do before somebody needs it: a failover should not wait for that.
fn look_at(provider: Arc<dyn Provider>) {
    tokio::spawn(async move {
        if let Err(error) = provider.capabilities().await {
            tracing::warn!(%error, "no server can be started at this recovery site");
        }
    });
}

fn started_event(now: Timestamp) -> Event {
    Event {
        time: now,
        severity: Severity::Information,
        code: "vault_started".into(),
        server: None,
        disk: None,
        message: format!("The vault ({}) was started at {now:.0}.", env!("CARGO_PKG_VERSION")),
        next_step: String::new(),
    }
}

/// Says, once a day, that the vault's certificate ends soon.
async fn tell_of_certificate(vault: &Vault, credentials: &Path) {
    let mut told: Option<Instant> = None;
    loop {
        let now = Timestamp::now();
        let ends =
            Credentials::load(credentials, now).ok().and_then(|credentials| credentials.ends_soon(now));
        if let Some(message) = ends
            && told.is_none_or(|told| told.elapsed() >= CERTIFICATE_TOLD_EVERY)
        {
            told = Some(Instant::now());
            let event = Event {
                time: now,
                severity: Severity::Warning,
                code: "certificate_ends_soon".into(),
                server: None,
                disk: None,
                message,
                next_step: "Put a new one in its place: lifeboat certificate issue --for vault. It is taken while the vault \
                            runs."
                    .into(),
            };
            if let Err(error) = vault.note(event).await {
                tracing::warn!(%error, "an event could not be stored");
            }
        }
        tokio::time::sleep(CREDENTIALS_EVERY).await;
    }
}

async fn follow_revocations(revoked: &Revoked, path: Option<&Path>) {
    match path {
        Some(path) => revoked.follow(path).await,
        None => std::future::pending().await,
    }
}

async fn expire_requests(vault: &Vault) {
    loop {
        tokio::time::sleep(REQUESTS_EVERY).await;
        if let Err(error) = vault.expire_requests(Timestamp::now()).await {
            tracing::warn!(%error, "old requests could not be looked through");
        }
    }
}
