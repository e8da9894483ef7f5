//! Brings files and points to the vault.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_hrl::verify_file;
use lifeboat_model::ServerId;
use lifeboat_wire::process_server::{GrantRequest, RegisterDisk};
use tokio_util::sync::CancellationToken;

use crate::bandwidth::TokenBucket;
use crate::clock::Clock;
use crate::gateway::{Gateway, UploadError};
use crate::link::{LinkError, Pace, VaultLink};
use crate::queue::Upload;
use crate::schedule::{BandwidthWindow, limit_at};

/// Points of different servers that are committed at the same time.
const COMMITTERS: usize = 4;

/// The longest sleep between two looks at the queue, in case nothing wakes an idle worker.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// Brings files and points to the vault until it is told to stop.
pub(crate) struct Uploader<V> {
    pub gateway: Arc<Gateway>,
    pub link: Arc<V>,
    pub line: Arc<Line>,
    pub clock: Clock,
}

impl<V: VaultLink> Uploader<V> {
    /// Runs `parallel` uploads at a time. Ends soon after `stop`; an upload that is cut off begins anew.
    pub async fn run(self: Arc<Self>, parallel: usize, stop: CancellationToken) {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..parallel {
            let uploader = Arc::clone(&self);
            tasks.spawn(stop.clone().run_until_cancelled_owned(async move { uploader.upload_files().await }));
        }
        for _ in 0..COMMITTERS {
            let uploader = Arc::clone(&self);
            tasks
                .spawn(stop.clone().run_until_cancelled_owned(async move { uploader.commit_points().await }));
        }
        let uploader = Arc::clone(&self);
        tasks.spawn(stop.run_until_cancelled_owned(async move { uploader.describe_disks().await }));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!("an uploading task failed: {error}");
            }
        }
    }

    async fn upload_files(&self) {
        let mut changes = self.gateway.subscribe();
        loop {
            changes.mark_unchanged();
            let Some(upload) = self.gateway.next_upload(self.clock.now()) else {
                self.idle(&mut changes).await;
                continue;
            };
            let result = self.upload(&upload).await;
            self.gateway.upload_ended(&upload, &result, self.clock.now(), self.clock.wall());
        }
    }

    async fn upload(&self, upload: &Upload) -> Result<(), UploadError> {
        if !upload.checked {
            verify(upload.clone()).await?;
        }
        let request = GrantRequest { server: upload.server, file: upload.file.clone() };
        let grant = self.link.grant(&request).await?;
        if grant.stored {
            return Ok(());
        }
        let pace = LinePace {
            uploader_line: Arc::clone(&self.line),
            gateway: Arc::clone(&self.gateway),
            server: upload.server,
        };
        self.link.upload(&grant, &upload.path, upload.file.bytes, pace).await?;
        Ok(())
    }

    async fn commit_points(&self) {
        let mut changes = self.gateway.subscribe();
        loop {
            changes.mark_unchanged();
            let Some(commit) = self.gateway.next_commit(self.clock.now()) else {
                self.idle(&mut changes).await;
                continue;
            };
            let result = self.link.commit(&commit).await;
            let (gateway, clock) = (Arc::clone(&self.gateway), self.clock);
            let noted = tokio::task::spawn_blocking(move || {
                gateway.commit_ended(&commit, &result, clock.now(), clock.wall())
            });
            if let Ok(Err(error)) = noted.await {
                tracing::error!("a commit could not be noted and is repeated: {error}");
            }
        }
    }

    /// Tells the vault what agents said of their disks while it was away.
    async fn describe_disks(&self) {
        let mut changes = self.gateway.subscribe();
        loop {
            changes.mark_unchanged();
            let mut failed = false;
            for (server, disk, request) in self.gateway.untold_disks() {
                let RegisterDisk { description } = &request;
                let commits = self.gateway.commits(server);
                let told = match self.link.register_disk(server, disk, &request).await {
                    Ok(fresh) => {
                        let (gateway, description, wall) =
                            (Arc::clone(&self.gateway), description.clone(), self.clock.wall());
                        let fresh = Some((fresh, commits));
                        let noted = tokio::task::spawn_blocking(move || {
                            gateway.describe_disk(server, disk, &description, None, fresh, wall)
                        });
                        noted.await.is_ok_and(|noted| noted.is_ok())
                    }
                    Err(error) => {
                        tracing::warn!(%server, %disk, "the vault does not know the disk's new description: {error}");
                        false
                    }
                };
                failed |= !told;
            }
            if failed {
                tokio::time::sleep(IDLE_MAX).await;
            } else {
                self.idle(&mut changes).await;
            }
        }
    }

    /// Waits for a change, for the end of a pause, or a while.
    async fn idle(&self, changes: &mut tokio::sync::watch::Receiver<()>) {
        let now = self.clock.now();
        let until = self.gateway.next_due(now).unwrap_or(Duration::MAX).min(now + IDLE_MAX);
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(self.clock.instant(until)) => {}
        }
    }
}

/// Reads a file that an earlier process wrote before it is sent.
async fn verify(upload: Upload) -> Result<(), UploadError> {
    let checking = tokio::task::spawn_blocking(move || {
        let name = upload.path.display();
        let file = match File::open(&upload.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(UploadError::Damaged(format!("{name} is gone from the spool")));
            }
            Err(error) => return Err(LinkError::NotNow(format!("{name} cannot be opened: {error}")).into()),
        };
        match verify_file(file) {
            Ok(verified) if verified.summary.digest == upload.file.digest => Ok(()),
            Ok(_) => Err(UploadError::Damaged(format!("{name} is another file than at the start"))),
            Err(error) => Err(UploadError::Damaged(error.in_file(name).to_string())),
        }
    });
    checking.await.unwrap_or_else(|error| Err(LinkError::NotNow(error.to_string()).into()))
}

/// The line to the vault, which all uploads share.
pub(crate) struct Line {
    windows: Vec<BandwidthWindow>,
    bucket: Mutex<TokenBucket>,
    clock: Clock,
}

impl Line {
    pub fn new(windows: Vec<BandwidthWindow>, clock: Clock) -> Self {
        Self { windows, bucket: Mutex::default(), clock }
    }

    async fn wait(&self, bytes: u64) {
        let local = jiff::Zoned::now().datetime();
        let Some(limit) = limit_at(&self.windows, local) else { return };
        let wait = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.take(bytes, limit, self.clock.now())
        };
        tokio::time::sleep(wait).await;
    }
}

struct LinePace {
    uploader_line: Arc<Line>,
    gateway: Arc<Gateway>,
    server: ServerId,
}

impl Pace for LinePace {
    async fn wait(&self, bytes: u64) {
        self.uploader_line.wait(bytes).await;
        self.gateway.count_uploaded(self.server, bytes, self.uploader_line.clock.now());
    }
}
