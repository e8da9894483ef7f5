//! The exports of a server, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::NbdError;
use crate::export::{Export, ExportInfo};
use crate::handshake::Catalogue;
use crate::protocol::check_string;

#[derive(Default)]
pub(crate) struct Registry {
    exports: RwLock<Exports>,
}

#[derive(Default)]
struct Exports {
    by_name: BTreeMap<String, Arc<Served>>,
    /// Nothing is added any more.
    closed: bool,
}

struct Served {
    export: Arc<dyn Export>,
    info: ExportInfo,
    closing: CancellationToken,
    stopping: CancellationToken,
    abort: CancellationToken,
    attachments: TaskTracker,
}

/// A connection's hold on an export. [`Registry::remove`] waits until all are dropped, so it is
/// never stored where it could outlive its connection.
pub(crate) struct Attachment {
    pub export: Arc<dyn Export>,
    /// The export is being removed: take no new requests, finish those in flight.
    pub closing: CancellationToken,
    /// The server stops and may be back: what was not begun is not answered, so that clients that
    /// connect again ask again.
    pub stopping: CancellationToken,
    /// There is no more time: drop everything.
    pub abort: CancellationToken,
    _counted: TaskTrackerToken,
}

impl Registry {
    pub fn add(&self, name: &str, export: Arc<dyn Export>) -> Result<(), NbdError> {
        check_string(name).map_err(|reason| NbdError::BadName { name: name.to_owned(), reason })?;
        let info = ExportInfo::of(&*export)
            .map_err(|reason| NbdError::BadExport { name: name.to_owned(), reason })?;
        let mut exports = self.exports.write().unwrap_or_else(PoisonError::into_inner);
        if exports.closed {
            return Err(NbdError::ShuttingDown);
        }
        if exports.by_name.contains_key(name) {
            return Err(NbdError::NameInUse { name: name.to_owned() });
        }
        let served = Served {
            export,
            info,
            closing: CancellationToken::new(),
            stopping: CancellationToken::new(),
            abort: CancellationToken::new(),
            attachments: TaskTracker::new(),
        };
        exports.by_name.insert(name.to_owned(), Arc::new(served));
        Ok(())
    }

    pub async fn remove(&self, name: &str, drain_timeout: Duration) -> Result<(), NbdError> {
        let served = {
            let mut exports = self.exports.write().unwrap_or_else(PoisonError::into_inner);
            exports.by_name.remove(name)
        };
        let served = served.ok_or_else(|| NbdError::UnknownExport { name: name.to_owned() })?;
        served.retire(name, drain_timeout).await;
        Ok(())
    }

    /// Clients that use an export now; none of one that is not there.
    pub fn clients(&self, name: &str) -> usize {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        exports.by_name.get(name).map_or(0, |served| served.attachments.len())
    }

    pub fn names(&self) -> Vec<String> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        exports.by_name.keys().cloned().collect()
    }

    /// Refuses further exports and ends those that there are, whose clients may come back.
    pub async fn close(&self, drain_timeout: Duration) {
        let retiring = self.take_all();
        retiring.values().for_each(|served| served.stopping.cancel());
        let retiring = retiring.iter().map(|(name, served)| served.retire(name, drain_timeout));
        futures::future::join_all(retiring).await;
    }

    /// Like [`Self::close`], at once and without waiting for anything.
    pub fn abort(&self) {
        for served in self.take_all().values() {
            served.closing.cancel();
            served.abort.cancel();
        }
    }

    fn take_all(&self) -> BTreeMap<String, Arc<Served>> {
        let mut exports = self.exports.write().unwrap_or_else(PoisonError::into_inner);
        exports.closed = true;
        std::mem::take(&mut exports.by_name)
    }
}

impl Served {
    async fn retire(&self, name: &str, drain_timeout: Duration) {
        self.closing.cancel();
        self.attachments.close();
        if tokio::time::timeout(drain_timeout, self.attachments.wait()).await.is_err() {
            tracing::warn!(
                export = name,
                "requests were still running when the export had to go; dropping them"
            );
            self.abort.cancel();
            self.attachments.wait().await;
        }
    }
}

impl Catalogue for Registry {
    type Handle = Attachment;

    fn list(&self, visit: &mut dyn FnMut(&str, &str)) {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        for (name, served) in &exports.by_name {
            visit(name, &served.info.description);
        }
    }

    fn find(&self, name: &str) -> Option<(ExportInfo, Attachment)> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        let served = exports.by_name.get(name)?;
        // Counted under the lock, so that a removal either hides the export or waits for this.
        let attachment = Attachment {
            export: Arc::clone(&served.export),
            closing: served.closing.clone(),
            stopping: served.stopping.clone(),
            abort: served.abort.clone(),
            _counted: served.attachments.token(),
        };
        Some((served.info.clone(), attachment))
    }
}
