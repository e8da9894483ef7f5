//! A process server as a whole.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_model::FRAME_BLOCKS;
use lifeboat_transport::{
    Client, ClientError, ClientSettings, Listener, ListenerSettings, ServeError, ServerTls,
};
use lifeboat_trust::{ClientCertificates, Credentials, Identity, Revocations, TrustError};
use lifeboat_wire::event::{Event, Severity};
use lifeboat_wire::process_server::SpoolState;
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::agents::Agents;
use crate::assignments::AssignmentDesk;
use crate::clock::Clock;
use crate::courier::{Courier, EVENT_LOTS_MAX, RESULTS_MAX};
use crate::gateway::{Gateway, Pauses};
use crate::handlers::{Desk, router};
use crate::http_link::HttpLink;
use crate::link::VaultLink;
use crate::outbox::Outbox;
use crate::receiver::Receiver;
use crate::sealing_pool::SealingPool;
use crate::settings::{Settings, SettingsError};
use crate::state_dir::{StateDir, StateError};
use crate::uploader::{Line, Uploader};

/// Time between two looks at the files of the certificate.
const CREDENTIALS_EVERY: Duration = Duration::from_secs(60);

/// How often it is told that the certificate ends soon.
const CERTIFICATE_TOLD_EVERY: Duration = Duration::from_secs(86_400);

/// Blocks of 4 KiB in a mebibyte.
const BLOCKS_PER_MIB: usize = 256;

/// The process server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ProcessServerError {
    /// Its settings cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Its certificate cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Its certificate is another role's, or another process server's.
    #[error(
        "the certificate in {credentials} is {found}, and the settings say that this is the process server {name:?}: \
         change the name or the directory"
    )]
    Identity {
        /// The directory.
        credentials: String,
        /// Whose certificate it is.
        found: String,
        /// The name in the settings.
        name: String,
    },
    /// Its state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The vault's address cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It cannot listen.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The system refused something else.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl ProcessServerError {
    fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

/// Runs a process server until `shutdown` completes.
///
/// # Errors
/// When it cannot start: settings, certificate, state directory or port.
pub async fn serve(
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ProcessServerError> {
    settings.check()?;
    let clock = Clock::start();
    let credentials = load_credentials(&settings, clock)?;
    let revocations = Revocations::new();
    let tls = Arc::new(ServerTls::new(&credentials, ClientCertificates::Required, revocations.clone())?);
    let request_timeout = settings.upload.request_timeout.duration();
    let client_settings = ClientSettings { call_timeout: request_timeout, ..ClientSettings::default() };
    let client = Client::with_settings(&settings.vault, &credentials, client_settings)?;

    let gateway = Arc::new(open_gateway(&settings, clock).await?);
    let state_dir = gateway.state_dir();
    let throttle = settings.spool.throttle_bytes_per_second;
    let desk = AssignmentDesk::open(state_dir.join("vault.json"), throttle, revocations)?;
    let link =
        HttpLink::new(client.clone(), request_timeout, settings.upload.stall_timeout.duration(), clock);
    let link = Arc::new(link);
    let courier = Arc::new(Courier {
        gateway: Arc::clone(&gateway),
        link: Arc::clone(&link),
        agents: Arc::new(Agents::default()),
        desk: Arc::new(desk),
        events: Arc::new(Outbox::open(state_dir.join("events"), EVENT_LOTS_MAX)?),
        results: Arc::new(Outbox::open(state_dir.join("results"), RESULTS_MAX)?),
        spool: settings.spool.clone(),
        clock,
        report_soon: Arc::new(Notify::new()),
        last_state: Mutex::new(SpoolState::Good),
    });
    let line = Arc::new(Line::new(settings.bandwidth.clone(), clock));
    let uploader = Arc::new(Uploader { gateway: Arc::clone(&gateway), link, line, clock });
    let desk = Arc::new(Desk {
        receiver: receiver(&settings, gateway, clock)?,
        courier: Arc::clone(&courier),
        digest_wait: settings.upload.digest_wait.duration(),
    });

    let request_id_start = OsRng.try_next_u64().unwrap_or(0);
    let listener = Listener::bind(ListenerSettings::new(settings.listen, request_id_start)).await?;
    tracing::info!(name = settings.name, address = %listener.local_address(), vault = settings.vault, "process server started");
    courier.tell(vec![started_event(&settings.name, clock.wall())]);
    let stop = CancellationToken::new();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(uploader.run(settings.upload.parallel, stop.clone()));
    tasks.spawn(Arc::clone(&courier).run(stop.clone()));
    let renewing =
        renew_credentials(settings.clone(), Arc::clone(&tls), client, credentials, Arc::clone(&courier));
    tasks.spawn(stop.clone().run_until_cancelled_owned(renewing));
    listener.serve(router(desk), tls, shutdown).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    tracing::info!("process server stopped");
    Ok(())
}

fn started_event(name: &str, now: Timestamp) -> Event {
    Event {
        time: now,
        severity: Severity::Information,
        code: "process_server_started".into(),
        server: None,
        disk: None,
        message: format!(
            "The process server {name} ({}) was started at {now:.0}.",
            env!("CARGO_PKG_VERSION")
        ),
        next_step: String::new(),
    }
}

fn load_credentials(settings: &Settings, clock: Clock) -> Result<Credentials, ProcessServerError> {
    let credentials = Credentials::load(&settings.credentials, clock.wall())?;
    match credentials.identity() {
        Identity::ProcessServer(name) if *name == settings.name => Ok(credentials),
        other => Err(ProcessServerError::Identity {
            credentials: settings.credentials.display().to_string(),
            found: other.to_string(),
            name: settings.name.clone(),
        }),
    }
}

async fn open_gateway(settings: &Settings, clock: Clock) -> Result<Gateway, ProcessServerError> {
    let path = settings.state.clone();
    let pauses = Pauses {
        unreachable_max: settings.upload.retry_max.duration(),
        refused_max: settings.upload.refused_retry_max.duration(),
    };
    let opening =
        tokio::task::spawn_blocking(move || Gateway::open(StateDir::open(&path)?, pauses, clock.wall()));
    let opened = opening.await.map_err(std::io::Error::other);
    Ok(opened.map_err(ProcessServerError::system("read the spool back"))??)
}

fn receiver(
    settings: &Settings,
    gateway: Arc<Gateway>,
    clock: Clock,
) -> Result<Receiver, ProcessServerError> {
    let pool = SealingPool::start(settings.worker_count())
        .map_err(ProcessServerError::system("start the compressing threads"))?;
    let blocks = settings.memory_mib as usize * BLOCKS_PER_MIB;
    debug_assert!(blocks as u64 >= FRAME_BLOCKS);
    Ok(Receiver {
        gateway,
        pool,
        budget: Arc::new(Semaphore::new(blocks)),
        compression_level: settings.compression_level,
        spool: settings.spool.clone(),
        clock,
    })
}

/// Takes a renewed certificate for both ends while the process runs, and tells when it ends soon.
async fn renew_credentials<V: VaultLink>(
    settings: Settings,
    tls: Arc<ServerTls>,
    client: Client,
    mut current: Credentials,
    courier: Arc<Courier<V>>,
) {
    let clock = courier.clock;
    let mut told: Option<Duration> = None;
    loop {
        match current.ends_soon(clock.wall()) {
            Some(message) if told.is_none_or(|told| clock.now() - told >= CERTIFICATE_TOLD_EVERY) => {
                told = Some(clock.now());
                let (courier, event) = (Arc::clone(&courier), ends_soon(message, clock));
                let telling = tokio::task::spawn_blocking(move || courier.tell(vec![event]));
                if let Err(error) = telling.await {
                    tracing::error!("an event was not kept: {error}");
                }
            }
            Some(_) => {}
            None => told = None,
        }
        tokio::time::sleep(CREDENTIALS_EVERY).await;
        let renewed = match load_credentials(&settings, clock) {
            Ok(renewed) if renewed.serial() != current.serial() => renewed,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!("the certificate cannot be renewed: {error}");
                continue;
            }
        };
        let taken = client.renew(&renewed).map_err(|error| error.to_string());
        match taken.and_then(|()| tls.reload(&renewed).map_err(|error| error.to_string())) {
            Ok(()) => current = renewed,
            Err(error) => tracing::error!("the renewed certificate cannot be used: {error}"),
        }
    }
}

fn ends_soon(message: String, clock: Clock) -> Event {
    Event {
        time: clock.wall(),
        severity: Severity::Warning,
        code: "certificate_ends_soon".into(),
        server: None,
        disk: None,
        message,
        next_step:
            "Put a new one in its place: lifeboat certificate issue --for process-server. It is taken while \
                    the process server runs."
                .into(),
    }
}
