//! A sparse disk in memory that records what is asked of it and can be told to misbehave.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use futures::future::BoxFuture;
use lifeboat_nbd::{BlockSizes, Export, ExportError, ReadChunk, StatusExtent, ZeroMode};
use tokio::sync::watch;

pub const PAGE: u64 = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Write { offset: u64, len: u64, fua: bool },
    Zeroes { offset: u64, len: u64, mode: ZeroMode },
    Trim { offset: u64, len: u64, fua: bool },
    Prefetch { offset: u64, len: u64 },
    Flush,
}

pub struct SparseDisk {
    size: u64,
    pub read_only: bool,
    pub block_sizes: BlockSizes,
    pages: RwLock<BTreeMap<u64, Vec<u8>>>,
    calls: Mutex<Vec<Call>>,
    /// Reads that touch this fail.
    pub bad: Mutex<Option<Range<u64>>>,
    /// Reads that touch this panic.
    pub panicking: Mutex<Option<Range<u64>>>,
    pub fast_zero: AtomicBool,
    /// While true, reads and writes wait.
    held: watch::Sender<bool>,
    pub running: AtomicUsize,
    bytes: AtomicUsize,
    /// The most requests, and bytes of requests, that ever ran at the same time.
    pub peak_running: AtomicUsize,
    pub peak_bytes: AtomicUsize,
}

impl SparseDisk {
    pub fn new(size: u64) -> Self {
        Self {
            size,
            read_only: false,
            block_sizes: BlockSizes::default(),
            pages: RwLock::default(),
            calls: Mutex::default(),
            bad: Mutex::default(),
            panicking: Mutex::default(),
            fast_zero: AtomicBool::new(true),
            held: watch::Sender::new(false),
            running: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            peak_running: AtomicUsize::new(0),
            peak_bytes: AtomicUsize::new(0),
        }
    }

    pub fn shared(size: u64) -> Arc<Self> {
        Arc::new(Self::new(size))
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Resolves once so many requests run at the same time.
    pub async fn wait_running(&self, count: usize) {
        while self.running.load(Ordering::SeqCst) < count {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    pub fn put(&self, offset: u64, data: &[u8]) {
        let mut pages = self.pages.write().unwrap();
        for (number, within, part) in parts(offset, data.len() as u64) {
            let page = pages.entry(number).or_insert_with(|| vec![0; PAGE as usize]);
            let from = (number * PAGE + within.start - offset) as usize;
            page[within.start as usize..within.end as usize].copy_from_slice(&data[from..from + part]);
        }
    }

    pub fn get(&self, offset: u64, len: u64) -> Vec<u8> {
        let pages = self.pages.read().unwrap();
        let mut out = Vec::new();
        for (number, within, part) in parts(offset, len) {
            match pages.get(&number) {
                Some(page) => out.extend_from_slice(&page[within.start as usize..within.end as usize]),
                None => out.resize(out.len() + part, 0),
            }
        }
        out
    }

    pub fn page_count(&self) -> usize {
        self.pages.read().unwrap().len()
    }

    fn zero(&self, offset: u64, len: u64) {
        for (number, within, part) in parts(offset, len) {
            if within == (0..PAGE) {
                self.pages.write().unwrap().remove(&number);
            } else if self.pages.read().unwrap().contains_key(&number) {
                self.put(number * PAGE + within.start, &vec![0; part]);
            }
        }
    }

    fn record(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    /// Lets half of the requests be ready at once and half not, so that both ways are tested.
    async fn pass_gate(&self, offset: u64, len: usize) {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        let bytes = self.bytes.fetch_add(len, Ordering::SeqCst) + len;
        self.peak_running.fetch_max(running, Ordering::SeqCst);
        self.peak_bytes.fetch_max(bytes, Ordering::SeqCst);
        let _running = Running(self, len);
        if (offset / PAGE).is_multiple_of(2) {
            tokio::task::yield_now().await;
        }
        let mut held = self.held.subscribe();
        if *held.borrow_and_update() {
            held.wait_for(|held| !held).await.unwrap();
        }
    }
}

struct Running<'a>(&'a SparseDisk, usize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        self.0.bytes.fetch_sub(self.1, Ordering::SeqCst);
    }
}

/// The pages of a range: number, range within the page, its length.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, Range<u64>, usize)> {
    let end = offset + len;
    (offset / PAGE..end.div_ceil(PAGE)).map(move |number| {
        let start = offset.max(number * PAGE) - number * PAGE;
        let stop = end.min((number + 1) * PAGE) - number * PAGE;
        (number, start..stop, (stop - start) as usize)
    })
}

fn touches(range: &Mutex<Option<Range<u64>>>, offset: u64, len: u64) -> bool {
    range.lock().unwrap().as_ref().is_some_and(|range| offset < range.end && range.start < offset + len)
}

impl Export for SparseDisk {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn description(&self) -> String {
        "a disk for tests".to_owned()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Vec<ReadChunk>, ExportError>> {
        Box::pin(async move {
            self.pass_gate(offset, len as usize).await;
            let len = u64::from(len);
            assert!(!touches(&self.panicking, offset, len), "told to panic");
            if touches(&self.bad, offset, len) {
                return Err(ExportError::Io("sector unreadable".to_owned()));
            }
            let pages = self.pages.read().unwrap();
            let chunk = |(number, within, part): (u64, Range<u64>, usize)| match pages.get(&number) {
                Some(page) => {
                    ReadChunk::Data(Bytes::copy_from_slice(&page[within.start as usize..within.end as usize]))
                }
                None => ReadChunk::Zeroes(part as u32),
            };
            Ok(parts(offset, len).map(chunk).collect())
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.pass_gate(offset, data.len()).await;
            self.put(offset, &data);
            self.record(Call::Write { offset, len: data.len() as u64, fua });
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            if mode.fast && !self.fast_zero.load(Ordering::SeqCst) {
                return Err(ExportError::NotSupported("slow zeroes".to_owned()));
            }
            self.zero(offset, len);
            if mode.no_hole {
                for (number, within, part) in parts(offset, len) {
                    self.put(number * PAGE + within.start, &vec![0; part]);
                }
            }
            self.record(Call::Zeroes { offset, len, mode });
            Ok(())
        })
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.zero(offset, len);
            self.record(Call::Trim { offset, len, fua });
            Ok(())
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.record(Call::Flush);
            Ok(())
        })
    }

    fn prefetch(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), ExportError>> {
        self.record(Call::Prefetch { offset, len });
        Box::pin(async { Ok(()) })
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'_, Result<Vec<StatusExtent>, ExportError>> {
        Box::pin(async move {
            let pages = self.pages.read().unwrap();
            let mut extents: Vec<StatusExtent> = Vec::new();
            for (number, _, part) in parts(offset, len) {
                let hole = !pages.contains_key(&number);
                let part = part as u64;
                let full = extents.len() == extents_max;
                match extents.last_mut() {
                    Some(last) if last.hole == hole => last.len += part,
                    _ if full => break,
                    _ => extents.push(StatusExtent { len: part, hole, zero: hole }),
                }
            }
            Ok(extents)
        })
    }
}
