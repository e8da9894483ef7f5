//! Drives the engine: carries out its actions and brings it what happened.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use lifeboat_wire::agent::RequestResult;

use crate::devices::Order;
use crate::engine::{Action, Engine, Event, Job, Notice};
use crate::quiet::Quiet;
use crate::services::Stand;
use crate::sink::Uplink;
use crate::status::Status;

/// The longest sleep: the watchdog is told that the loop turns.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What comes in for the replicator.
#[derive(Debug)]
pub(crate) enum Message {
    Event(Box<Event>),
    Stop,
}

/// Where events go. Clones go to the same replicator.
#[derive(Clone, Debug)]
pub(crate) struct Inbox {
    sender: Sender<Message>,
    status: Arc<Status>,
}

impl Inbox {
    pub fn new(status: Arc<Status>) -> (Self, Receiver<Message>) {
        let (sender, receiver) = channel();
        (Self { sender, status }, receiver)
    }

    /// Nobody reads events once the replicator has ended.
    pub fn send(&self, event: Event) {
        let _ = self.sender.send(Message::Event(Box::new(event)));
    }

    pub fn stop(&self) {
        let _ = self.sender.send(Message::Stop);
    }

    pub fn tell(&self, notice: Notice) {
        self.status.tell(notice);
    }
}

/// The engine with everything that carries out its actions.
pub(crate) struct Replicator {
    pub engine: Engine,
    pub record_file: PathBuf,
    pub quiet: Arc<Quiet>,
    pub uplink: Arc<Uplink>,
    pub status: Arc<Status>,
    pub inbox: Inbox,
    pub devices: Sender<Order>,
    pub copier: Sender<(Job, String)>,
    pub services: Sender<Stand>,
    pub results: UnboundedSender<RequestResult>,
    /// Counts the turns of the loop, for the watchdog.
    pub turns: Arc<AtomicU64>,
}

impl Replicator {
    /// Runs until it is told to stop, or a thread that it needs is gone.
    pub fn run(mut self, messages: &Receiver<Message>) {
        let start = Instant::now();
        loop {
            self.turns.fetch_add(1, Ordering::Relaxed);
            while let Some(action) = self.engine.next(start.elapsed()) {
                if !self.perform(action, start) {
                    return;
                }
            }
            self.status.publish(self.engine.summary());
            let now = start.elapsed();
            let sleep =
                self.engine.wake_at(now).map_or(SLEEP_MAX, |at| at.saturating_sub(now).min(SLEEP_MAX));
            match messages.recv_timeout(sleep) {
                Ok(Message::Event(event)) => self.engine.apply(*event, start.elapsed()),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Does what the engine wants. False when the thread for it is gone.
    fn perform(&mut self, action: Action, start: Instant) -> bool {
        match action {
            Action::Save(record) => {
                let save = || record.save(&self.record_file).map_err(|error| error.to_string());
                let saved = self.quiet.when_thawed(save).unwrap_or(Ok(()));
                if let Err(error) = &saved {
                    tracing::error!("{error}");
                }
                self.engine.apply(Event::Saved(saved), start.elapsed());
            }
            Action::Open(disk, path) => return self.order(Order::Open(disk, path)),
            Action::Close { disk, untrack } => return self.order(Order::Close { disk, untrack }),
            Action::Settle(disk) => return self.order(Order::Settle(disk)),
            Action::Join(disk) => return self.order(Order::Join(disk)),
            Action::Leave(disk) => return self.order(Order::Leave(disk)),
            Action::Round(round) => return self.order(Order::Round(round)),
            Action::Acknowledge => return self.order(Order::Acknowledge),
            Action::Collected(disk) => return self.order(Order::Collected(disk)),
            Action::CollectEnd => return self.order(Order::CollectEnd),
            Action::PutBack(disk, extents) => return self.order(Order::PutBack(disk, extents, None)),
            Action::Copier(job) => {
                let path = self.engine.record().disks.get(&job.disk).map(|disk| disk.path.clone());
                return self.copier.send((job, path.unwrap_or_default())).is_ok();
            }
            Action::Describe(disk, description) => {
                let (uplink, inbox) = (Arc::clone(&self.uplink), self.inbox.clone());
                self.uplink.runtime.spawn(async move {
                    let result = uplink.server.describe(disk, &description).await;
                    inbox.send(Event::Described(disk, result));
                });
            }
            Action::StandDown(paths) => return self.services.send(Stand::Down(paths)).is_ok(),
            Action::StandUp => return self.services.send(Stand::Up).is_ok(),
            Action::Retire => return self.services.send(Stand::Retired).is_ok(),
            Action::Seal(seal) => {
                let (uplink, inbox) = (Arc::clone(&self.uplink), self.inbox.clone());
                self.uplink.runtime.spawn(async move {
                    let result = uplink.server.seal(&seal).await;
                    inbox.send(Event::Sealed(result.map(|receipt| receipt.point)));
                });
            }
            // The task that posts them lives as long as the runtime.
            Action::Result(result) => drop(self.results.send(result)),
            Action::Tell(notice) => self.status.tell(notice),
        }
        true
    }

    fn order(&self, order: Order) -> bool {
        self.devices.send(order).is_ok()
    }
}
