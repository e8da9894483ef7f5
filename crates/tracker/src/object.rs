//! The compiled programs and how they get into the kernel.

use std::error::Error;
use std::path::Path;

use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};

use crate::device::{DiskIdentity, DiskKey};
use crate::instance::BITMAPS;
use crate::layout::Layout;
use crate::{TrackerError, prototype};

/// The programs: copy number and tracepoint. See the crate's essay for why there are copies.
pub(crate) const PROGRAMS: [(&str, &str); 6] = [
    ("on_issue_0", "block_rq_issue"),
    ("on_issue_1", "block_rq_issue"),
    ("on_issue_2", "block_rq_issue"),
    ("on_complete_0", "block_rq_complete"),
    ("on_complete_1", "block_rq_complete"),
    ("on_complete_2", "block_rq_complete"),
];

/// Copies of each program.
pub(crate) const COPIES: usize = 3;

static ATOMIC: &[u8] = aya::include_bytes_aligned!("../bpf/atomic.bpf.o");
static PLAIN_BYTES: &[u8] = aya::include_bytes_aligned!("../bpf/plain.bpf.o");

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// How the programs set a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// By an atomic OR (Linux 5.12 on; on arm64 5.18): exact.
    Atomic,
    /// By storing a byte, for older kernels on x86-64: each write marks 8 blocks at a time.
    PlainBytes,
}

impl Variant {
    /// A word for logs and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Atomic => "atomic",
            Self::PlainBytes => "plain-bytes",
        }
    }

    pub(crate) const fn code(self) -> u64 {
        match self {
            Self::Atomic => 1,
            Self::PlainBytes => 2,
        }
    }

    pub(crate) const fn from_code(code: u64) -> Option<Self> {
        match code {
            1 => Some(Self::Atomic),
            2 => Some(Self::PlainBytes),
            _ => None,
        }
    }

    const fn object(self) -> &'static [u8] {
        match self {
            Self::Atomic => ATOMIC,
            Self::PlainBytes => PLAIN_BYTES,
        }
    }
}

/// What the programs need to know of the running kernel; reading it takes some 50 ms, so once.
#[derive(Debug)]
pub(crate) struct Kernel {
    btf: Btf,
    issue_has_queue: bool,
}

impl Kernel {
    pub(crate) fn read() -> Result<Self, TrackerError> {
        let bytes = std::fs::read(BTF_PATH)
            .map_err(|source| TrackerError::NoTypeInformation { path: BTF_PATH, source })?;
        let arguments = |tracepoint: &'static str, possible: std::ops::RangeInclusive<u32>| {
            let found = prototype::tracepoint_arguments(&bytes, tracepoint)
                .map_err(|why| TrackerError::BadTypeInformation { why })?
                .ok_or(TrackerError::NoTracepoint { tracepoint })?;
            if possible.contains(&found) {
                return Ok(found);
            }
            let why = format!("the tracepoint {tracepoint} has {found} arguments");
            Err(TrackerError::BadTypeInformation { why })
        };
        let issue_has_queue = arguments("block_rq_issue", 1..=2)? == 2;
        arguments("block_rq_complete", 3..=3)?;
        let btf = Btf::parse(&bytes, aya::Endianness::default())
            .map_err(|error| TrackerError::BadTypeInformation { why: explain(&error) })?;
        Ok(Self { btf, issue_has_queue })
    }

    /// Creates the maps of a disk and loads its programs; nothing is attached yet. The control
    /// map is the one pinned at `control`, or a new one of no use. Without a `variant`, the
    /// best one that this kernel accepts.
    pub(crate) fn load(
        &self,
        key: &DiskKey,
        identity: &DiskIdentity,
        control: Option<&Path>,
        variant: Option<Variant>,
    ) -> Result<(Ebpf, Variant), TrackerError> {
        let request = Request { kernel: self, key, identity, control };
        let refused = match variant {
            Some(variant) => {
                return request
                    .load(variant)?
                    .map(|ebpf| (ebpf, variant))
                    .map_err(|why| TrackerError::Load { variant: variant.as_str(), why });
            }
            None => match request.load(Variant::Atomic)? {
                Ok(ebpf) => return Ok((ebpf, Variant::Atomic)),
                Err(why) => why,
            },
        };
        // Only x86-64 keeps plain stores in order without a fence between them.
        if cfg!(not(target_arch = "x86_64")) {
            return Err(TrackerError::NoAtomics { architecture: std::env::consts::ARCH, why: refused });
        }
        tracing::info!(disk = %key, why = refused, "no atomic operations in eBPF; marking 8 blocks at a time");
        match request.load(Variant::PlainBytes)? {
            Ok(ebpf) => Ok((ebpf, Variant::PlainBytes)),
            Err(why) => {
                let why = format!("{why}; with atomic operations before that: {refused}");
                Err(TrackerError::Load { variant: Variant::PlainBytes.as_str(), why })
            }
        }
    }
}

struct Request<'a> {
    kernel: &'a Kernel,
    key: &'a DiskKey,
    identity: &'a DiskIdentity,
    control: Option<&'a Path>,
}

impl Request<'_> {
    /// The outer error is about the maps and final, the inner one says why the verifier
    /// refused a program.
    fn load(&self, variant: Variant) -> Result<Result<Ebpf, String>, TrackerError> {
        let layout = Layout::new(self.identity.blocks)?;
        let bases = [layout.whole_base(), layout.summary_base()].map(|base| u32::try_from(base).ok());
        let [Some(whole_base), Some(summary_base)] = bases else {
            return Err(TrackerError::BadSize { blocks: self.identity.blocks });
        };
        let issue_has_queue = u32::from(self.kernel.issue_has_queue);
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(&self.kernel.btf))
            .override_global("disk_major", &self.identity.major, true)
            .override_global("disk_minor", &self.identity.minor, true)
            .override_global("disk_blocks", &self.identity.blocks, true)
            .override_global("whole_base", &whole_base, true)
            .override_global("summary_base", &summary_base, true)
            .override_global("issue_has_queue", &issue_has_queue, true);
        if let Some(control) = self.control {
            loader.map_pin_path("control", control);
        }
        for map in BITMAPS {
            loader.map_max_entries(map, layout.map_entries());
        }
        let mut ebpf = loader.load(variant.object()).map_err(|error| TrackerError::Maps {
            key: self.key.to_string(),
            mebibytes: (BITMAPS.len() as u64 * 8 * u64::from(layout.map_entries())).div_ceil(1 << 20),
            why: explain(&error),
        })?;
        for (name, tracepoint) in PROGRAMS {
            match load_program(&mut ebpf, name, tracepoint, &self.kernel.btf) {
                Ok(()) => (),
                Err(ProgramError::LoadError { io_error, verifier_log }) => {
                    return Ok(Err(format!("{name}: {io_error}: {}", end_of(&verifier_log.to_string()))));
                }
                Err(error) => return Ok(Err(format!("{name}: {}", explain(&error)))),
            }
        }
        Ok(Ok(ebpf))
    }
}

fn load_program(ebpf: &mut Ebpf, name: &str, tracepoint: &str, btf: &Btf) -> Result<(), ProgramError> {
    program(ebpf, name)?.load(tracepoint, btf)
}

/// A program of the object by its name.
pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint, ProgramError> {
    let program = ebpf.program_mut(name).ok_or_else(|| {
        let text = format!("the object has no program {name}");
        ProgramError::IOError(std::io::Error::other(text))
    })?;
    program.try_into()
}

/// An error with all its causes in one line.
pub(crate) fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// The end of a verifier's log, where the reason is.
fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}
