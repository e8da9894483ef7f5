//! The versions of the format. Any version ever released stays readable.

use crate::error::{HrlError, Problem, Result};

/// A version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The first.
    V1 = 1,
}

impl Version {
    /// What is written today.
    pub const CURRENT: Self = Self::V1;

    /// As it stands in a file.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The version with this number, found at byte `at` of a file.
    pub(crate) fn of_number(number: u16, at: u64) -> Result<Self> {
        match number {
            1 => Ok(Self::V1),
            0 => Err(HrlError::at(at, Problem::Malformed("there is no version 0"))),
            newer => Err(HrlError::at(at, Problem::NewerVersion(newer))),
        }
    }
}
