//! Running an agent: start, the tasks beside the replicator, stop.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_capture::{Capture, CaptureOptions, QuiesceOptions, thaw_leftovers};
use lifeboat_tracker::{DiskDevice, TrackerSet, check_privileges};
use lifeboat_transport::Backoff;
use lifeboat_trust::private_file::{FileError, create_private_directory};
use lifeboat_trust::{Credentials, Identity, Serial};
use lifeboat_wire::agent::RequestResult;
use lifeboat_wire::event::Severity;
use rustix::fs::FlockOperation;
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::copier::Copier;
use crate::device::identity_of;
use crate::devices::{Devices, Waiting};
use crate::engine::{Engine, Event, Failure, Notice, WantedDisk};
use crate::facts::reporter::Reporter;
use crate::fit;
use crate::link::ProcessServer;
use crate::notify::notify;
use crate::pace::{Pace, RaisedLimit};
use crate::quiet::Quiet;
use crate::record::Record;
use crate::recovery_copy;
use crate::replicator::{Inbox, Message, Replicator};
use crate::services::Services;
use crate::settings::Settings;
use crate::sink::Uplink;
use crate::status::{Status, answer};

/// Time between two reports when nothing changes.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// How often the settings' disks are looked at.
const SETTINGS_EVERY: Duration = Duration::from_secs(2);

/// How often the certificate is read again.
const CREDENTIALS_EVERY: Duration = Duration::from_secs(60);

/// How often it is told that the certificate ends soon.
const CERTIFICATE_TOLD_EVERY: Duration = Duration::from_secs(86_400);

/// The agent cannot run: one sentence with a next step.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RunError(String);

impl RunError {
    fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Runs an agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or a thread of it ended by itself.
pub fn run(config: &Path, quiet: &Arc<Quiet>) -> Result<(), RunError> {
    stop_with_parent()?;
    // First, lest somebody who is not root is told of directories that belong to root.
    check_privileges().map_err(RunError::of)?;
    let settings = Settings::load(config).map_err(RunError::of)?;
    create_private_directory(&settings.state).map_err(RunError::of)?;
    let _lock = lock(&settings)?;
    let thawed = thaw_leftovers(&settings.frozen_file());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| RunError(format!("cannot start threads: {error}")))?;
    if let Some(sentence) = recovery_copy::sentence() {
        tracing::warn!("{sentence}");
        // Nobody waits for its end: it has its own log.
        drop(thread("fit", fit::later)?);
        let rested = runtime.block_on(recovery_copy::rest());
        return rested.map_err(|error| RunError(format!("cannot wait for signals: {error}")));
    }
    let outcome = Agent::start(config, &settings, quiet, runtime.handle()).and_then(|agent| {
        agent.tell_of_thaw(&thawed);
        agent.until_stopped(config, &runtime)
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

/// Under a trial, the agent goes when the trial is gone, however that ended.
fn stop_with_parent() -> Result<(), RunError> {
    if std::env::var_os("LIFEBOAT_STOP_WITH_PARENT").is_some() {
        set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| {
            RunError(format!("cannot ask to be stopped with the parent process: {error}"))
        })?;
    }
    Ok(())
}

fn lock(settings: &Settings) -> Result<File, RunError> {
    let path = settings.lock_file();
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(FileError::io("open", &path)).map_err(RunError::of)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        RunError(format!(
            "another agent uses {}; stop that one (systemctl stop lifeboat-agent) or set another state directory",
            settings.state.display()
        ))
    })?;
    Ok(file)
}

/// The certificate of an agent.
fn credentials(settings: &Settings) -> Result<Credentials, RunError> {
    let credentials = Credentials::load(&settings.credentials, Timestamp::now()).map_err(RunError::of)?;
    match credentials.identity() {
        Identity::Agent(_) => Ok(credentials),
        other => Err(RunError(format!(
            "the certificate in {} is {}'s, not an agent's; enrol this server",
            settings.credentials.display(),
            other.role()
        ))),
    }
}

struct Agent {
    uplink: Arc<Uplink>,
    status: Arc<Status>,
    inbox: Inbox,
    replicator: JoinHandle<()>,
    turns: Arc<AtomicU64>,
    results: UnboundedReceiver<RequestResult>,
    socket: UnixListener,
}

impl Agent {
    fn start(
        config: &Path,
        settings: &Settings,
        quiet: &Arc<Quiet>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, RunError> {
        let credentials = credentials(settings)?;
        let (record, damaged) = Record::load(&settings.record_file()).map_err(RunError::of)?;
        let engine = Engine::new(record, settings.name(), Box::new(rand::random));
        let server = ProcessServer::new(&settings.process_servers, &credentials, engine.life());
        let server = server.map_err(RunError::of)?;
        let trackers = TrackerSet::open(&settings.pin_dir).map_err(RunError::of)?;
        let held_bytes_max = usize::try_from(settings.memory_bytes / 2).unwrap_or(usize::MAX);
        let options = CaptureOptions { held_bytes_max, ..CaptureOptions::default() };
        let capture = Capture::new(trackers, options).map_err(RunError::of)?;
        let mut quiesce = QuiesceOptions::new(settings.frozen_file());
        quiesce.frozen_max = settings.freeze_timeout.duration();

        let waiting = Waiting::default();
        let status = Status::new(settings.name(), Arc::clone(&waiting));
        status.tell(Notice {
            severity: Severity::Information,
            code: "agent_started",
            disk: None,
            message: format!(
                "The agent ({}) was started at {:.0}.",
                env!("CARGO_PKG_VERSION"),
                Timestamp::now()
            ),
            next_step: String::new(),
        });
        if let Some(why) = damaged {
            status.tell(Notice {
                severity: Severity::Warning,
                code: "record_damaged",
                disk: None,
                message: format!("The agent's record is lost: {why}."),
                next_step: "Nothing to do: all disks are compared with their copies.".into(),
            });
        }
        let uplink = Arc::new(Uplink {
            server,
            runtime: runtime.clone(),
            throttle: Pace::default(),
            copy_limit: Pace::default(),
            stop: AtomicBool::new(false),
        });
        let (inbox, messages) = Inbox::new(Arc::clone(&status));
        let socket = bind(runtime, &settings.status_socket())?;
        let devices =
            Devices::new(capture, Arc::clone(&uplink), inbox.clone(), waiting, (quiesce, Arc::clone(quiet)));
        let turns = Arc::new(AtomicU64::new(0));
        let (results_sender, results) = unbounded_channel();
        inbox.send(Event::Wanted(wanted(&settings.disks).disks));
        let (devices_sender, orders) = channel();
        let (copier_sender, jobs) = channel();
        let (services_sender, stands) = channel();
        let services = Services {
            config: config.to_owned(),
            quiet: Arc::clone(quiet),
            inbox: inbox.clone(),
            hold: None,
        };
        let copier = Copier::new(Arc::clone(&uplink), inbox.clone(), devices_sender.clone());
        let replicator = Replicator {
            engine,
            record_file: settings.record_file(),
            quiet: Arc::clone(quiet),
            uplink: Arc::clone(&uplink),
            status: Arc::clone(&status),
            inbox: inbox.clone(),
            devices: devices_sender,
            copier: copier_sender,
            services: services_sender,
            results: results_sender,
            turns: Arc::clone(&turns),
        };
        let devices = thread("devices", move || devices.run(&orders))?;
        let copier = thread("copier", move || copier.run(&jobs))?;
        let services = thread("services", move || services.run(&stands))?;
        let others = [devices, copier, services];
        let replicator = thread("replicator", move || drive(replicator, &messages, others))?;
        let facts = Reporter {
            config: config.to_owned(),
            disks: settings.disks.clone(),
            uplink: Arc::clone(&uplink),
            quiet: Arc::clone(quiet),
        };
        // Nobody waits for its end: it only reads.
        drop(thread("facts", move || facts.run())?);
        tracing::info!(identity = %credentials.identity(), config = %config.display(), "the agent runs");
        Ok(Self { uplink, status, inbox, replicator, turns, results, socket })
    }

    fn tell_of_thaw(&self, thawed: &std::io::Result<Vec<String>>) {
        let (severity, message) = match thawed {
            Ok(mounts) if mounts.is_empty() => return,
            Ok(mounts) => (
                Severity::Warning,
                format!("File systems that an agent had left frozen were thawed: {}.", mounts.join(", ")),
            ),
            Err(error) => {
                (Severity::Critical, format!("What an agent had left frozen could not be thawed: {error}."))
            }
        };
        let next_step = "Look whether a file system is still frozen: fsfreeze --unfreeze MOUNTPOINT.".into();
        self.status.tell(Notice { severity, code: "thawed_after_crash", disk: None, message, next_step });
    }

    fn until_stopped(self, config: &Path, runtime: &tokio::runtime::Runtime) -> Result<(), RunError> {
        let Self { uplink, status, inbox, replicator, turns, results, socket } = self;
        runtime.spawn(answer(socket, Arc::clone(&status)));
        runtime.spawn(report(Arc::clone(&uplink), Arc::clone(&status)));
        runtime.spawn(follow_assignment(Arc::clone(&uplink), inbox.clone(), Arc::clone(&status)));
        runtime.spawn(post_results(Arc::clone(&uplink), results));
        runtime.spawn(watch_settings(
            config.to_owned(),
            Arc::clone(&uplink),
            inbox.clone(),
            Arc::clone(&status),
        ));
        runtime.spawn(watchdog(turns));
        notify("READY=1");
        let ended = runtime.block_on(async {
            let (Ok(mut term), Ok(mut int)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                return true;
            };
            let gone = async {
                while !replicator.is_finished() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            };
            tokio::select! {
                _ = term.recv() => false,
                _ = int.recv() => false,
                () = gone => true,
            }
        });
        notify("STOPPING=1");
        tracing::info!("the agent stops; tracking goes on");
        uplink.stop.store(true, Ordering::Relaxed);
        inbox.stop();
        let clean = join_in_time(replicator, Duration::from_secs(10));
        if ended || !clean {
            return Err(RunError(
                "a thread of the agent ended by itself; its log says why. Start it again".into(),
            ));
        }
        Ok(())
    }
}

/// Runs the replicator, then lets the other threads end: their channels close with it.
fn drive(replicator: Replicator, messages: &Receiver<Message>, others: [JoinHandle<()>; 3]) {
    let inbox = replicator.inbox.clone();
    replicator.run(messages);
    drop(inbox);
    for thread in others {
        let _ = thread.join();
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, RunError> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(work).map_err(|error| RunError(format!("cannot start the thread {name}: {error}")))
}

fn join_in_time(thread: JoinHandle<()>, wait: Duration) -> bool {
    let begun = Instant::now();
    while !thread.is_finished() {
        if begun.elapsed() > wait {
            // Everything durable is; the rest ends with the process.
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    thread.join().is_ok()
}

fn bind(runtime: &tokio::runtime::Handle, path: &Path) -> Result<UnixListener, RunError> {
    // Only one agent has the state directory, so a socket that is there is a leftover.
    let _ = std::fs::remove_file(path);
    let _guard = runtime.enter();
    UnixListener::bind(path)
        .map_err(|error| RunError(format!("cannot make the socket {}: {error}", path.display())))
}

/// What the list of disks in the settings comes to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// The disks, with what they call themselves.
    disks: Vec<WantedDisk>,
    /// Paths of disks that an earlier path names already, with that one.
    twice: Vec<(String, String)>,
}

/// Two paths may lead to one disk, and without a serial number its name is the path: it would be
/// tracked and copied as two.
fn wanted(paths: &[String]) -> Wanted {
    let mut wanted = Wanted::default();
    let mut first_of: BTreeMap<(u32, u32), &String> = BTreeMap::new();
    for path in paths {
        let device = DiskDevice::inspect(Path::new(path)).ok();
        if let Some(device) = &device {
            match first_of.entry((device.identity.major, device.identity.minor)) {
                Entry::Occupied(first) => {
                    wanted.twice.push((path.clone(), (*first.get()).clone()));
                    continue;
                }
                Entry::Vacant(first) => drop(first.insert(path)),
            }
        }
        let identity = device.map(|device| identity_of(&device, path));
        wanted.disks.push(WantedDisk { path: path.clone(), identity });
    }
    wanted
}

fn tell_of_twice(status: &Status, config: &Path, twice: &[(String, String)]) {
    for (path, first) in twice {
        status.tell(Notice {
            severity: Severity::Warning,
            code: "disk_named_twice",
            disk: None,
            message: format!("{path} is the same disk as {first}, which the settings name before it."),
            next_step: format!("Take one of the two out of `disks` in {}.", config.display()),
        });
    }
}

async fn report(uplink: Arc<Uplink>, status: Arc<Status>) {
    loop {
        let report = status.report();
        let more = uplink.server.report(&report).await.is_ok() && status.taken(&report);
        if !more {
            // Not more often than every 200 ms, whatever changes.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let _ = tokio::time::timeout(REPORT_EVERY, status.changed.notified()).await;
        }
    }
}

async fn follow_assignment(uplink: Arc<Uplink>, inbox: Inbox, status: Arc<Status>) {
    let mut seen = None;
    let mut raised = RaisedLimit::default();
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
    loop {
        match uplink.server.assignment(seen).await {
            Ok(assignment) => {
                backoff.reset();
                if seen != Some(assignment.revision) {
                    seen = Some(assignment.revision);
                    uplink.throttle.set(assignment.throttle_bytes_per_second);
                    uplink.copy_limit.set(assignment.policy.copy_bytes_per_second);
                    raised.tell(assignment.policy.copy_bytes_per_second, &status);
                    inbox.send(Event::Assignment(Box::new(assignment)));
                }
            }
            Err(Failure::Away(why) | Failure::Conflict(why) | Failure::Refused(why)) => {
                // The process server may have restarted and count from the beginning.
                seen = None;
                inbox.send(Event::NoAssignment(why));
                tokio::time::sleep(backoff.next_delay(rand::random())).await;
            }
        }
    }
}

async fn post_results(uplink: Arc<Uplink>, mut results: UnboundedReceiver<RequestResult>) {
    let mut waiting = VecDeque::new();
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
    while let Some(result) = results.recv().await {
        waiting.push_back(result);
        while let Some(result) = waiting.front() {
            match uplink.server.result(result).await {
                Err(Failure::Away(why)) => {
                    tracing::debug!("a result cannot be posted yet: {why}");
                    tokio::time::sleep(backoff.next_delay(rand::random())).await;
                }
                Err(Failure::Conflict(why) | Failure::Refused(why)) => {
                    tracing::warn!(request = result.request, "a result was refused: {why}");
                    waiting.pop_front();
                }
                Ok(()) => {
                    backoff.reset();
                    waiting.pop_front();
                }
            }
        }
    }
}

/// Follows the list of disks in the settings and the certificate, on SIGHUP and by themselves.
async fn watch_settings(config: PathBuf, uplink: Arc<Uplink>, inbox: Inbox, status: Arc<Status>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    let mut known = None;
    let mut complained = String::new();
    let mut renewed: Option<Instant> = None;
    let mut certificate = CertificateWatch::default();
    loop {
        let asked = tokio::time::timeout(SETTINGS_EVERY, hangup.recv()).await.is_ok();
        let read = config.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            Settings::load(&read).map(|settings| (wanted(&settings.disks), settings)).map_err(RunError::of)
        });
        match loaded.await.unwrap_or_else(|_| Err(RunError("reading the settings broke down".into()))) {
            Ok((now, settings)) => {
                complained.clear();
                if known.as_ref() != Some(&now) {
                    inbox.send(Event::Wanted(now.disks.clone()));
                    if known.as_ref().map(|before: &Wanted| &before.twice) != Some(&now.twice) {
                        tell_of_twice(&status, &config, &now.twice);
                    }
                    known = Some(now);
                }
                if asked || renewed.is_none_or(|renewed| renewed.elapsed() > CREDENTIALS_EVERY) {
                    renewed = Some(Instant::now());
                    certificate.look(&settings, &uplink, &status);
                }
            }
            Err(RunError(why)) if why != complained => {
                status.tell(Notice {
                    severity: Severity::Warning,
                    code: "settings_wrong",
                    disk: None,
                    message: format!("The settings cannot be read again, the old ones stay: {why}."),
                    next_step: format!("Mend {}.", config.display()),
                });
                complained = why;
            }
            Err(_) => {}
        }
    }
}

/// Takes a renewed certificate, and tells when the one that is there ends soon or cannot be read.
#[derive(Default)]
struct CertificateWatch {
    shown: Option<Serial>,
    told: Option<(String, Instant)>,
}

impl CertificateWatch {
    fn look(&mut self, settings: &Settings, uplink: &Uplink, status: &Status) {
        let renewed = credentials(settings).and_then(|credentials| {
            // Connections begin anew with it, so not without need.
            if self.shown != Some(credentials.serial()) {
                uplink.server.renew(&credentials).map_err(RunError::of)?;
                self.shown = Some(credentials.serial());
            }
            Ok(credentials)
        });
        let (code, message) = match renewed {
            Ok(credentials) => match credentials.ends_soon(Timestamp::now()) {
                Some(message) => ("certificate_ends_soon", message),
                None => return self.told = None,
            },
            Err(RunError(why)) => (
                "certificate_not_renewed",
                format!("The certificate cannot be read again, the old one stays: {why}."),
            ),
        };
        let is_told = self
            .told
            .as_ref()
            .is_some_and(|(what, at)| *what == message && at.elapsed() < CERTIFICATE_TOLD_EVERY);
        if is_told {
            return;
        }
        self.told = Some((message.clone(), Instant::now()));
        status.tell(Notice {
            severity: Severity::Warning,
            code,
            disk: None,
            message,
            next_step: format!(
                "Put a new one into {}: lifeboat certificate issue --for agent --server ID. It is taken while the \
                 agent runs.",
                settings.credentials.display()
            ),
        });
    }
}

/// Tells systemd that the replicator's loop turns.
async fn watchdog(turns: Arc<AtomicU64>) {
    let mut last = None;
    loop {
        let now = turns.load(Ordering::Relaxed);
        if last != Some(now) {
            notify("WATCHDOG=1");
            last = Some(now);
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}
