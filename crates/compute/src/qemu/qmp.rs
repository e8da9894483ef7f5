//! Talking to a machine's QEMU.
//!
//! A connection lasts for one operation. QEMU keeps all state, so a provider that takes a machine over
//! needs nothing but the machine's socket. QEMU serves one connection at a time; the provider holds the
//! machine's lock while it has one.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use lifeboat_model::MachineId;
use qapi::ExecuteError;
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp::{Event, QmpCommand};
use tokio::net::unix::OwnedWriteHalf;
use tokio::task::JoinHandle;

use super::settings::ANSWER_LIMIT;
use crate::directory::{MachineDirectory, QMP};
use crate::error::ComputeError;

/// A connection to a machine's QEMU.
pub(crate) struct Qmp {
    machine: MachineId,
    service: QapiService<QmpStreamTokio<OwnedWriteHalf>>,
    events: JoinHandle<()>,
    resumed: Arc<Mutex<Option<Timestamp>>>,
}

impl Qmp {
    /// Connects. An `io::Error` means that nobody listens yet or any longer.
    pub(crate) async fn connect(directory: &MachineDirectory) -> io::Result<Self> {
        let socket = directory.connect(QMP).await?;
        let (read, write) = socket.into_split();
        let greeted = async { QmpStreamTokio::open_split(read, write).await?.negotiate().await };
        let stream = tokio::time::timeout(ANSWER_LIMIT, greeted).await??;
        let (service, mut events) = stream.into_parts();
        let resumed = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&resumed);
        let events = tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                tracing::debug!(?event, "event of a machine");
                if let Event::RESUME { timestamp, .. } = event {
                    *seen.lock().unwrap_or_else(PoisonError::into_inner) = time_of(timestamp);
                }
            }
        });
        Ok(Self { machine: directory.machine, service, events, resumed })
    }

    /// Asks QEMU for something and waits for its answer.
    pub(crate) async fn ask<C: QmpCommand>(&self, command: C) -> Result<C::Ok, ComputeError> {
        self.ask_within(command, ANSWER_LIMIT).await
    }

    /// The same with another limit on the wait.
    pub(crate) async fn ask_within<C: QmpCommand>(
        &self,
        command: C,
        limit: Duration,
    ) -> Result<C::Ok, ComputeError> {
        let (machine, question) = (self.machine, C::NAME);
        match tokio::time::timeout(limit, self.service.execute(command)).await {
            Err(_) => Err(ComputeError::Silent { machine, question, limit }),
            Ok(Err(ExecuteError::Qapi(error))) => {
                Err(ComputeError::Refused { machine, question, why: error.desc })
            }
            Ok(Err(ExecuteError::Io(error))) => Err(ComputeError::Refused {
                machine,
                question,
                why: format!("it closed its socket ({error})"),
            }),
            Ok(Ok(answer)) => Ok(answer),
        }
    }

    /// What was asked for did not come.
    pub(crate) fn silent(&self, question: &'static str, limit: Duration) -> ComputeError {
        ComputeError::Silent { machine: self.machine, question, limit }
    }

    /// When the guest last began or went on executing, if that was during this connection.
    pub(crate) fn resumed(&self) -> Option<Timestamp> {
        *self.resumed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.events.abort();
    }
}

/// The crate's type keeps its fields to itself, except as JSON.
fn time_of(timestamp: qapi::Timestamp) -> Option<Timestamp> {
    let timestamp = serde_json::to_value(timestamp).ok()?;
    let seconds = timestamp.get("seconds")?.as_i64()?;
    let microseconds = timestamp.get("microseconds")?.as_i64()?;
    Timestamp::from_microsecond(seconds * 1_000_000 + microseconds).ok()
}
