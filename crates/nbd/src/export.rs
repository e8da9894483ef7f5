use bytes::Bytes;
use futures::future::BoxFuture;

use crate::protocol::{self, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, transmission_flag};

/// Something that clients see as a disk.
///
/// The server calls the methods of one export from many tasks at once: requests of one client
/// run side by side, and so do several clients. All ranges that it passes were checked: they
/// lie within `size_bytes`, are aligned to the minimum block size and are not empty, and
/// methods that write are not called if `read_only` is set.
///
/// # Durability
///
/// The server tells clients that they may use several connections (`CAN_MULTI_CONN`). So the
/// export **must** guarantee that
///
/// - a completed write is seen by every read that starts afterwards, on any connection;
/// - `flush` makes every write durable that had completed before `flush` was called, no matter
///   on which connection;
/// - a write with `fua` is durable when it completes.
///
/// # Scheduling
///
/// A future that is ready at its first poll is answered at once on the connection's own task,
/// which is the quickest way for data in memory. Work that takes long (decompression, blocking
/// files) belongs on other tasks or threads, so that the requests of one connection run in
/// parallel.
///
/// A future is dropped before it is ready only if the export is being removed and
/// [`crate::Limits::drain_timeout`] has passed. A panic in a future is logged and answered
/// with `EIO`.
pub trait Export: Send + Sync + 'static {
    /// Size of the disk. Must not change while the export is served; at most `i64::MAX` and a
    /// multiple of the minimum block size.
    fn size_bytes(&self) -> u64;

    /// Whether writing is refused.
    fn read_only(&self) -> bool;

    /// A sentence for people, at most 4096 bytes. May be empty.
    fn description(&self) -> String {
        String::new()
    }

    /// Granularity of requests.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::default()
    }

    /// Reads `len` bytes at `offset`. The chunks follow one another and must be `len` bytes
    /// together. They are sent without being copied.
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Vec<ReadChunk>, ExportError>>;

    /// Writes `data` at `offset`; with `fua` completes only once it is durable. `data` owns
    /// exactly its own memory, so keeping it pins nothing else.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Makes `len` bytes at `offset` read as zeroes.
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Hints that `len` bytes at `offset` are no longer needed. What they read as afterwards is
    /// up to the export.
    fn trim(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Makes durable what had completed before the call, see "Durability".
    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Hints that `len` bytes at `offset` will be read soon. Does nothing unless overridden.
    fn prefetch(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), ExportError>> {
        let _ = (offset, len);
        Box::pin(async { Ok(()) })
    }

    /// What is known of `len` bytes from `offset` on, as extents that follow one another. Fewer
    /// bytes may be described than were asked for, but at least one. More than `extents_max`
    /// extents are of no use to the server. Says "data" for everything unless overridden.
    fn block_status(
        &self,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'_, Result<Vec<StatusExtent>, ExportError>> {
        let _ = (offset, extents_max);
        Box::pin(async move { Ok(vec![StatusExtent { len, hole: false, zero: false }]) })
    }
}

/// A part of what a read returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadChunk {
    Data(Bytes),
    /// So many bytes of zeroes, told to the client as a hole where the protocol allows it.
    Zeroes(u32),
}

impl ReadChunk {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(len) => u64::from(*len),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for ReadChunk {
    fn from(data: Bytes) -> Self {
        Self::Data(data)
    }
}

/// How [`Export::write_zeroes`] is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZeroMode {
    /// Keep the space allocated: later writes there must not fail for lack of space.
    pub no_hole: bool,
    /// Complete only once it is durable.
    pub fua: bool,
    /// Fail with [`ExportError::NotSupported`], changing nothing, unless this is quicker than
    /// writing the zeroes as data.
    pub fast: bool,
}

/// A run of bytes with the same status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes.
    pub len: u64,
    /// Nothing is stored for it.
    pub hole: bool,
    /// It certainly reads as zeroes.
    pub zero: bool,
}

/// Granularity of requests in bytes, as told to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Every request must be aligned to this: a power of two, 1 to 65536.
    pub minimum: u32,
    /// Requests should be aligned to this: a power of two, at least 512 and `minimum`.
    pub preferred: u32,
    /// Largest payload of one request, at most 32 MiB.
    pub maximum: u32,
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096, maximum: PAYLOAD_BYTES_MAX }
    }
}

/// Why an export did not do what a client asked. The text reaches the client where the protocol
/// can carry it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    #[error("input/output error: {0}")]
    Io(String),
    #[error("no space left: {0}")]
    NoSpace(String),
    #[error("invalid request: {0}")]
    Invalid(String),
    #[error("not permitted: {0}")]
    NotPermitted(String),
    #[error("the export is being shut down")]
    ShuttingDown,
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    #[error("request too large: {0}")]
    TooLarge(String),
    /// Only for [`ZeroMode::fast`]; clients get `EIO` for it elsewhere.
    #[error("not supported: {0}")]
    NotSupported(String),
}

impl ExportError {
    /// The value for the wire.
    pub fn errno(&self) -> protocol::Errno {
        use protocol::Errno;
        match self {
            Self::Io(_) => Errno::Io,
            Self::NoSpace(_) => Errno::NoSpace,
            Self::Invalid(_) => Errno::Invalid,
            Self::NotPermitted(_) => Errno::NotPermitted,
            Self::ShuttingDown => Errno::Shutdown,
            Self::OutOfMemory(_) => Errno::NoMemory,
            Self::TooLarge(_) => Errno::Overflow,
            Self::NotSupported(_) => Errno::NotSupported,
        }
    }
}

/// What an export says of itself, taken once when it is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    pub size_bytes: u64,
    pub read_only: bool,
    pub description: String,
    pub block_sizes: BlockSizes,
}

impl ExportInfo {
    /// Asks the export and checks the answers against the protocol's rules.
    pub(crate) fn of(export: &dyn Export) -> Result<Self, String> {
        let info = Self {
            size_bytes: export.size_bytes(),
            read_only: export.read_only(),
            description: export.description(),
            block_sizes: export.block_sizes(),
        };
        let BlockSizes { minimum, preferred, maximum } = info.block_sizes;
        if !minimum.is_power_of_two() || minimum > 65536 {
            return Err(format!("minimum block size {minimum} is not a power of two up to 65536"));
        }
        if !preferred.is_power_of_two() || preferred < minimum.max(512) {
            return Err(format!("preferred block size {preferred} is not a power of two from 512 on"));
        }
        if maximum < preferred || maximum > PAYLOAD_BYTES_MAX || !maximum.is_multiple_of(minimum) {
            return Err(format!("maximum payload {maximum} is not between {preferred} and 32 MiB"));
        }
        if i64::try_from(info.size_bytes).is_err() {
            return Err(format!("its size {} is above 2^63 - 1 bytes", info.size_bytes));
        }
        if !info.size_bytes.is_multiple_of(u64::from(minimum)) {
            return Err(format!("its size {} is no multiple of {minimum}", info.size_bytes));
        }
        if info.description.len() > STRING_BYTES_MAX || info.description.contains('\0') {
            return Err("its description is above 4096 bytes or contains NUL".to_owned());
        }
        Ok(info)
    }

    /// The transmission flags for a client that negotiated structured replies, or did not.
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        use transmission_flag as flag;
        let mut flags =
            flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        if self.read_only {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        }
        if structured {
            flags |= flag::SEND_DF;
        }
        flags
    }
}
