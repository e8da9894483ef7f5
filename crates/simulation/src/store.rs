//! An object store that fails, is killed at a call, runs full and gets damaged, as it is told.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::sync::watch;

/// What happens at one of the next calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// At which call, counted from 0.
    pub call: u64,
    /// Whether the call has had its effect.
    pub after: bool,
    pub kind: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// This call fails, the next ones do not.
    Once,
    /// All calls fail from this one on.
    Lasting,
    /// Whoever calls is killed while it waits for the answer.
    Kill,
}

/// A store in memory. Clones are the same one.
#[derive(Clone)]
pub struct SimStore(Arc<Shared>, Caller);

/// Who calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    Vault,
    /// Reads of volumes, which come from many threads: for them nothing fails and nothing is counted.
    Volume,
}

struct Shared {
    inner: InMemory,
    state: Mutex<State>,
    /// True while the caller of a killing call hangs.
    killed: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    calls: u64,
    fault: Option<Fault>,
    outage: bool,
    full: bool,
    wall: Duration,
    next_version: u64,
    objects: BTreeMap<String, Known>,
    /// What was there before the damage.
    damaged: BTreeMap<String, Bytes>,
}

#[derive(Clone, Copy)]
struct Known {
    version: u64,
    modified: Duration,
}

enum Verdict {
    Good,
    Fails { after: bool },
    Kills { after: bool },
}

fn refused() -> Error {
    Error::Generic { store: "simulated", source: "the simulation wants this call to fail".into() }
}

fn no_room() -> Error {
    const ENOSPC: i32 = 28;
    Error::Generic { store: "simulated", source: Box::new(std::io::Error::from_raw_os_error(ENOSPC)) }
}

impl SimStore {
    pub fn new() -> Self {
        let (killed, _) = watch::channel(false);
        Self(Arc::new(Shared { inner: InMemory::new(), state: Mutex::default(), killed }), Caller::Vault)
    }

    /// The same store for volumes to read.
    pub fn for_volumes(&self) -> Self {
        Self(Arc::clone(&self.0), Caller::Volume)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    /// The clock by which objects are dated, since the Unix epoch.
    pub fn set_wall(&self, wall: Duration) {
        self.state().wall = wall;
    }

    pub fn arm(&self, fault: Option<Fault>) {
        let mut state = self.state();
        state.calls = 0;
        state.fault = fault;
    }

    pub fn set_outage(&self, outage: bool) {
        self.state().outage = outage;
    }

    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    pub fn is_away(&self) -> bool {
        self.state().outage
    }

    pub fn is_hindered(&self) -> bool {
        let state = self.state();
        state.outage || state.full
    }

    /// Returns when a caller is to be killed. The caller hangs until [`SimStore::revive`].
    pub async fn killed(&self) {
        let mut killed = self.0.killed.subscribe();
        let _ = killed.wait_for(|killed| *killed).await;
    }

    pub fn revive(&self) {
        self.0.killed.send_replace(false);
    }

    /// Changes whenever the object does; none when there is no such object.
    pub fn version(&self, object: &str) -> Option<u64> {
        self.state().objects.get(object).map(|known| known.version)
    }

    pub fn names(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    pub fn is_damaged(&self, object: &str) -> bool {
        self.state().damaged.contains_key(object)
    }

    pub fn any_damage(&self) -> bool {
        !self.state().damaged.is_empty()
    }

    pub fn content(&self, object: &str) -> Option<Bytes> {
        let got = self.0.inner.get(&Path::from(object)).now_or_never()?.ok()?;
        got.bytes().now_or_never()?.ok()
    }

    /// Puts other content in the place of an object, or nothing.
    #[allow(clippy::needless_pass_by_value, reason = "bytes are shared, not copied")]
    pub fn damage(&self, object: &str, content: Option<Bytes>) {
        let Some(before) = self.content(object) else { return };
        let path = Path::from(object);
        match &content {
            Some(content) => {
                self.0.inner.put(&path, content.clone().into()).now_or_never().unwrap().unwrap();
            }
            None => self.0.inner.delete(&path).now_or_never().unwrap().unwrap(),
        }
        let mut state = self.state();
        state.note(object, content.is_some());
        state.damaged.entry(object.to_owned()).or_insert(before);
    }

    /// Puts everything back that was damaged and not written anew since.
    pub fn repair(&self) -> usize {
        let damaged = std::mem::take(&mut self.state().damaged);
        for (object, content) in &damaged {
            self.0
                .inner
                .put(&Path::from(object.as_str()), content.clone().into())
                .now_or_never()
                .unwrap()
                .unwrap();
            self.state().note(object, true);
        }
        damaged.len()
    }
}

impl State {
    fn note(&mut self, object: &str, there: bool) {
        self.next_version += 1;
        if there {
            let known = Known { version: self.next_version, modified: self.wall };
            self.objects.insert(object.to_owned(), known);
        } else {
            self.objects.remove(object);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn call(&self) -> Verdict {
        let mut state = self.state();
        let call = state.calls;
        state.calls += 1;
        if state.outage {
            return Verdict::Fails { after: false };
        }
        match state.fault {
            Some(fault) if fault.call == call => match fault.kind {
                FaultKind::Kill => Verdict::Kills { after: fault.after },
                _ => Verdict::Fails { after: fault.after },
            },
            Some(fault) if fault.kind == FaultKind::Lasting && call > fault.call => {
                Verdict::Fails { after: false }
            }
            _ => Verdict::Good,
        }
    }

    /// Whoever waits for this is dropped; a thread that cannot be gets an error once all is over.
    async fn hang(&self) -> Error {
        let mut killed = self.killed.subscribe();
        self.killed.send_replace(true);
        let _ = killed.wait_for(|killed| !*killed).await;
        refused()
    }

    async fn done<T>(&self, effect: impl Future<Output = Result<T>>) -> Result<T> {
        match self.call() {
            Verdict::Good => effect.await,
            Verdict::Fails { after } => {
                if after {
                    effect.await?;
                }
                Err(refused())
            }
            Verdict::Kills { after } => {
                if after {
                    effect.await?;
                }
                Err(self.hang().await)
            }
        }
    }

    fn has_room(&self) -> Result<()> {
        if self.state().full { Err(no_room()) } else { Ok(()) }
    }

    fn written(&self, path: &Path) {
        let mut state = self.state();
        state.note(path.as_ref(), true);
        state.damaged.remove(path.as_ref());
    }

    fn removed(&self, path: &Path) {
        let mut state = self.state();
        state.note(path.as_ref(), false);
        state.damaged.remove(path.as_ref());
    }

    fn dated(&self, mut meta: ObjectMeta) -> ObjectMeta {
        if let Some(known) = self.state().objects.get(meta.location.as_ref()) {
            meta.last_modified = (SystemTime::UNIX_EPOCH + known.modified).into();
        }
        meta
    }
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated store")
    }
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimStore")
    }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.0
            .done(async {
                self.0.has_room()?;
                let put = self.0.inner.put_opts(location, payload, opts).await?;
                self.0.written(location);
                Ok(put)
            })
            .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.0.done(self.0.inner.put_multipart_opts(location, opts)).await?;
        Ok(Box::new(SimUpload { inner, shared: Arc::clone(&self.0), location: location.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if self.1 == Caller::Volume {
            return self.0.inner.get_opts(location, options).await;
        }
        self.0.done(self.0.inner.get_opts(location, options)).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if self.1 == Caller::Volume {
            return self.0.inner.get_ranges(location, ranges).await;
        }
        self.0.done(self.0.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let shared = Arc::clone(&self.0);
        let deleted = locations.then(move |location| {
            let shared = Arc::clone(&shared);
            async move {
                let location = location?;
                let delete = async {
                    shared.inner.delete(&location).await?;
                    shared.removed(&location);
                    Ok(())
                };
                shared.done(delete).await?;
                Ok(location)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.0.call() {
            Verdict::Good => {
                let shared = Arc::clone(&self.0);
                self.0.inner.list(prefix).map(move |meta| meta.map(|meta| shared.dated(meta))).boxed()
            }
            Verdict::Fails { .. } | Verdict::Kills { .. } => futures::stream::iter([Err(refused())]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.done(self.0.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0
            .done(async {
                self.0.has_room()?;
                self.0.inner.copy_opts(from, to, options).await?;
                self.0.written(to);
                Ok(())
            })
            .await
    }
}

struct SimUpload {
    inner: Box<dyn MultipartUpload>,
    shared: Arc<Shared>,
    location: Path,
}

impl fmt::Debug for SimUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimUpload")
    }
}

#[async_trait]
impl MultipartUpload for SimUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        if let Err(error) = self.shared.has_room() {
            return futures::future::ready(Err(error)).boxed();
        }
        let put = self.inner.put_part(data);
        let shared = Arc::clone(&self.shared);
        async move { shared.done(put).await }.boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let shared = Arc::clone(&self.shared);
        shared
            .done(async {
                let put = self.inner.complete().await?;
                self.shared.written(&self.location);
                Ok(put)
            })
            .await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
