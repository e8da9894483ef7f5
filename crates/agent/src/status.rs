//! What the agent tells: reports to the process server, events until they were taken, and the
//! answer to `lifeboat-agent status`.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_wire::agent::{AgentReport, CaptureMode};
use lifeboat_wire::event::{Event, Severity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use crate::devices::Waiting;
use crate::engine::{Notice, Summary};

/// Events that wait for a report; more push out the oldest.
const EVENTS_MAX: usize = 1000;

/// Events in one report.
const EVENTS_PER_REPORT: usize = 100;

/// Bytes of the longest status.
const STATUS_BYTES_MAX: u64 = 16 << 20;

/// What the agent tells.
#[derive(Debug)]
pub struct Status {
    server_name: String,
    kernel: String,
    boot_id: String,
    inner: Mutex<Inner>,
    waiting: Waiting,
    /// Wakes the reporter when the mode changed or something happened.
    pub(crate) changed: Notify,
}

#[derive(Debug)]
struct Inner {
    summary: Summary,
    events: VecDeque<Event>,
    dropped: u64,
}

impl Status {
    pub(crate) fn new(server_name: String, waiting: Waiting) -> Arc<Self> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let summary = Summary { capture: CaptureMode::Starting, captured: None, disks: Vec::new() };
        Arc::new(Self {
            server_name,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            boot_id: boot_id.trim().to_owned(),
            inner: Mutex::new(Inner { summary, events: VecDeque::new(), dropped: 0 }),
            waiting,
            changed: Notify::new(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the engine's part of the next report.
    pub(crate) fn publish(&self, summary: Summary) {
        let mut inner = self.inner();
        let changed = inner.summary.capture != summary.capture;
        if changed {
            tracing::info!(mode = ?summary.capture, "capture");
        }
        inner.summary = summary;
        drop(inner);
        if changed {
            self.changed.notify_one();
        }
    }

    /// Logs a notice and keeps it as an event until a report has taken it.
    pub(crate) fn tell(&self, notice: Notice) {
        let Notice { severity, code, disk, message, next_step } = notice;
        match severity {
            Severity::Information => tracing::info!(code, "{message}"),
            Severity::Warning => tracing::warn!(code, "{message} {next_step}"),
            Severity::Critical => tracing::error!(code, "{message} {next_step}"),
        }
        let event = Event {
            time: Timestamp::now(),
            severity,
            code: code.into(),
            server: None,
            disk,
            message,
            next_step,
        };
        let mut inner = self.inner();
        inner.events.push_back(event);
        if inner.events.len() > EVENTS_MAX {
            inner.events.pop_front();
            inner.dropped += 1;
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// A report with the oldest events that were not taken yet.
    pub(crate) fn report(&self) -> AgentReport {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let inner = self.inner();
        let mut disks = inner.summary.disks.clone();
        for disk in &mut disks {
            disk.waiting_bytes = waiting.get(&disk.disk).map_or(0, |blocks| blocks * 4096);
        }
        AgentReport {
            time: Timestamp::now(),
            server_name: self.server_name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: self.kernel.clone(),
            boot_id: self.boot_id.clone(),
            capture: inner.summary.capture.clone(),
            captured: inner.summary.captured,
            disks,
            cpu_ms: cpu_ms(),
            memory_bytes: memory_bytes(),
            events: inner.events.iter().take(EVENTS_PER_REPORT).cloned().collect(),
        }
    }

    /// The report was taken: its events are forgotten, and whether there are more.
    pub(crate) fn taken(&self, report: &AgentReport) -> bool {
        let mut inner = self.inner();
        // Events that were pushed out while the report was on its way are gone already.
        for event in &report.events {
            if inner.events.front() == Some(event) {
                inner.events.pop_front();
            }
        }
        if inner.events.is_empty() && inner.dropped > 0 {
            let dropped = std::mem::take(&mut inner.dropped);
            drop(inner);
            self.tell(Notice {
                severity: Severity::Warning,
                code: "events_lost",
                disk: None,
                message: format!("{dropped} events were dropped while the process server was away."),
                next_step: "The agent's log has them.".into(),
            });
            return true;
        }
        !inner.events.is_empty()
    }
}

/// Processor time of this process.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold spaces; utime and stime are the 12th and 13th after it.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    ticks * 1000 / rustix::param::clock_ticks_per_second().max(1)
}

fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Answers every connection to the socket with the status as JSON.
pub(crate) async fn answer(socket: UnixListener, status: Arc<Status>) {
    loop {
        let Ok((mut stream, _)) = socket.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let text = serde_json::to_vec(&status.report()).unwrap_or_default();
        // Whoever asked may have gone, and may not hold up the others.
        let _ = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&text)).await;
    }
}

/// Asks the agent that runs with this socket.
///
/// # Errors
/// When none does, or its answer cannot be understood.
pub fn ask(socket: &Path) -> io::Result<AgentReport> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stream = UnixStream::connect(socket).await?.take(STATUS_BYTES_MAX);
        let mut text = Vec::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut text)).await??;
        serde_json::from_slice(&text).map_err(io::Error::other)
    })
}
