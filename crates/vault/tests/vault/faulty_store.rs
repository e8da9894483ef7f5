//! An object store that fails when it is told to.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Whether a call that fails has had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    Before,
    After,
}

/// Objects in memory. From one call on all calls fail, until it is healed.
#[derive(Debug)]
pub struct FaultyStore {
    inner: InMemory,
    calls: AtomicU64,
    fails_from: AtomicU64,
    fails_after: std::sync::atomic::AtomicBool,
}

impl FaultyStore {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            calls: AtomicU64::new(0),
            fails_from: AtomicU64::new(u64::MAX),
            fails_after: false.into(),
        })
    }

    /// Fails from the `call`th call from now on, counted from 0.
    pub fn fail_from(&self, call: u64, fails: Fails) {
        self.fails_after.store(fails == Fails::After, Ordering::SeqCst);
        self.fails_from.store(self.calls.load(Ordering::SeqCst) + call, Ordering::SeqCst);
    }

    pub fn heal(&self) {
        self.fails_from.store(u64::MAX, Ordering::SeqCst);
    }

    /// Whether a call failed since it was told to.
    pub fn has_failed(&self) -> bool {
        self.calls.load(Ordering::SeqCst) > self.fails_from.load(Ordering::SeqCst)
    }

    /// Counts a call. With an error the call fails; the first failing one may have its effect.
    fn count(&self) -> (bool, Option<Error>) {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let first = self.fails_from.load(Ordering::SeqCst);
        let error = (call >= first)
            .then(|| Error::Generic { store: "faulty", source: "the test wants it to fail".into() });
        let has_effect = error.is_none() || (call == first && self.fails_after.load(Ordering::SeqCst));
        (has_effect, error)
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a faulty store")
    }
}

macro_rules! counted {
    ($self:ident, $call:expr) => {{
        let (has_effect, error) = $self.count();
        let result = if has_effect { Some($call.await) } else { None };
        match (error, result) {
            (Some(error), _) => Err(error),
            (None, Some(result)) => result,
            (None, None) => unreachable!("a call without an error has its effect"),
        }
    }};
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        counted!(self, self.inner.put_opts(location, payload, opts))
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        counted!(self, self.inner.put_multipart_opts(location, opts))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        counted!(self, self.inner.get_opts(location, options))
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        counted!(self, self.inner.get_ranges(location, ranges))
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (_, error) = self.count();
        match error {
            Some(error) => Box::pin(futures::stream::iter([Err(error)])),
            None => self.inner.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        counted!(self, self.inner.list_with_delimiter(prefix))
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        counted!(self, self.inner.copy_opts(from, to, options))
    }
}
