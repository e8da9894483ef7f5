//! What a recovery point guarantees.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How consistent a recovery point is. Recorded with the point and never upgraded by guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PointKind {
    /// A state that a power cut at that time could have left.
    Crash,
    /// Taken while every file system of the protected disks was frozen.
    Filesystem,
    /// As `Filesystem`, with the applications' own preparation before it.
    Application,
}

impl PointKind {
    /// The word for it in the command line, the API and the catalog.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Filesystem => "filesystem",
            Self::Application => "application",
        }
    }
}

impl fmt::Display for PointKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word names no kind of recovery point.
#[derive(Debug, thiserror::Error)]
#[error("a recovery point is crash, filesystem or application consistent, not {0:?}")]
pub struct PointKindError(String);

impl std::str::FromStr for PointKind {
    type Err = PointKindError;

    fn from_str(text: &str) -> Result<Self, PointKindError> {
        [Self::Crash, Self::Filesystem, Self::Application]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| PointKindError(text.chars().take(80).collect()))
    }
}
