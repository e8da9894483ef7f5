//! Checks requests against what was negotiated, before anything is done about them.

use crate::export::{ExportInfo, ZeroMode};
use crate::protocol::{Command, Errno, Request, STATUS_EXTENTS_MAX, command_flag};

/// What client and server agreed on in the handshake.
#[derive(Debug, Clone)]
pub struct Terms {
    pub info: ExportInfo,
    /// Replies to reads are structured.
    pub structured: bool,
    /// The client chose `base:allocation`, so it may ask for block status.
    pub allocation: bool,
}

/// A request that may be carried out: its range lies within the export and is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read { offset: u64, len: u32, no_fragments: bool },
    Write { offset: u64, len: u32, fua: bool },
    WriteZeroes { offset: u64, len: u32, mode: ZeroMode },
    Trim { offset: u64, len: u32, fua: bool },
    Cache { offset: u64, len: u32 },
    BlockStatus { offset: u64, len: u32, extents_max: usize },
    Flush,
    Disconnect,
}

impl Operation {
    /// Bytes of memory that carrying it out takes, at most.
    pub fn cost_bytes(&self) -> u32 {
        match self {
            Self::Read { len, .. } | Self::Write { len, .. } => *len,
            // Eight bytes an extent.
            Self::BlockStatus { .. } => 64 << 10,
            _ => 0,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Read { len, .. }
            | Self::Write { len, .. }
            | Self::WriteZeroes { len, .. }
            | Self::Trim { len, .. }
            | Self::Cache { len, .. } => *len == 0,
            Self::BlockStatus { .. } | Self::Flush | Self::Disconnect => false,
        }
    }
}

/// Why a request is answered with an error and not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub errno: Errno,
    pub message: &'static str,
}

const fn refuse(errno: Errno, message: &'static str) -> Refusal {
    Refusal { errno, message }
}

/// Turns a request into an operation.
pub fn check(request: &Request, terms: &Terms) -> Result<Operation, Refusal> {
    check_flags(request, terms)?;
    check_permission(request, terms)?;
    check_range(request, terms)?;
    let Request { offset, length: len, flags, .. } = *request;
    let fua = flags & command_flag::FUA != 0;
    Ok(match request.command {
        Command::Read => Operation::Read { offset, len, no_fragments: flags & command_flag::DF != 0 },
        Command::Write => Operation::Write { offset, len, fua },
        Command::WriteZeroes => {
            let mode = ZeroMode {
                no_hole: flags & command_flag::NO_HOLE != 0,
                fua,
                fast: flags & command_flag::FAST_ZERO != 0,
            };
            Operation::WriteZeroes { offset, len, mode }
        }
        Command::Trim => Operation::Trim { offset, len, fua },
        Command::Cache => Operation::Cache { offset, len },
        Command::BlockStatus => {
            let one = flags & command_flag::REQ_ONE != 0;
            Operation::BlockStatus { offset, len, extents_max: if one { 1 } else { STATUS_EXTENTS_MAX } }
        }
        Command::Flush => Operation::Flush,
        Command::Disconnect => Operation::Disconnect,
        Command::Unknown(_) => return Err(refuse(Errno::Invalid, "unknown command")),
    })
}

fn check_flags(request: &Request, terms: &Terms) -> Result<(), Refusal> {
    // Clients set FUA on commands that it means nothing for; the protocol has servers bear it.
    let allowed = command_flag::FUA
        | match request.command {
            Command::Read if terms.structured => command_flag::DF,
            Command::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            Command::BlockStatus => command_flag::REQ_ONE,
            // The connection ends, whatever the flags.
            Command::Disconnect => u16::MAX,
            _ => 0,
        };
    if request.flags & !allowed != 0 {
        return Err(refuse(Errno::Invalid, "a flag is set that does not belong to this command"));
    }
    Ok(())
}

fn check_permission(request: &Request, terms: &Terms) -> Result<(), Refusal> {
    match request.command {
        Command::Write | Command::WriteZeroes | Command::Trim if terms.info.read_only => {
            Err(refuse(Errno::NotPermitted, "the export is read-only"))
        }
        Command::BlockStatus if !terms.allocation => {
            Err(refuse(Errno::Invalid, "no metadata context was negotiated"))
        }
        _ => Ok(()),
    }
}

fn check_range(request: &Request, terms: &Terms) -> Result<(), Refusal> {
    let Request { command, offset, length, .. } = *request;
    match command {
        Command::Disconnect | Command::Unknown(_) => return Ok(()),
        Command::Flush if offset == 0 && length == 0 => return Ok(()),
        Command::Flush => return Err(refuse(Errno::Invalid, "offset and length of a flush must be zero")),
        _ => {}
    }
    if length == 0 && command == Command::BlockStatus {
        return Err(refuse(Errno::Invalid, "the length is zero"));
    }
    let maximum = terms.info.block_sizes.maximum;
    if length > maximum {
        match command {
            Command::Read if terms.structured => {
                return Err(refuse(Errno::Overflow, "the length is above the maximum payload"));
            }
            Command::Read | Command::Write => {
                return Err(refuse(Errno::Invalid, "the length is above the maximum payload"));
            }
            _ => {}
        }
    }
    let end = offset.checked_add(u64::from(length));
    if end.is_none_or(|end| end > terms.info.size_bytes) {
        let errno = match command {
            Command::Write | Command::WriteZeroes => Errno::NoSpace,
            _ => Errno::Invalid,
        };
        return Err(refuse(errno, "the range reaches beyond the end of the export"));
    }
    let minimum = terms.info.block_sizes.minimum;
    if !offset.is_multiple_of(u64::from(minimum)) || !length.is_multiple_of(minimum) {
        return Err(refuse(Errno::Invalid, "the range is not aligned to the minimum block size"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
