//! Spans of time and amounts of bytes as a person writes and reads them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A span of time, written as a number and `ms`, `s`, `m`, `h` or `d`: `5s`, `2h`, `15d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

/// The text is no span of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a span of time is a whole number and ms, s, m, h or d (such as 5s), not {0:?}")]
pub struct SpanError(String);

const UNITS_MS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Span {
    /// A span of whole seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// A span of whole milliseconds.
    #[must_use]
    pub const fn of_milliseconds(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// In whole milliseconds.
    #[must_use]
    pub fn milliseconds(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// The same as the standard library's type.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let error = || SpanError(text.chars().take(80).collect());
        let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let unit = &text[digits.len()..];
        let (_, unit_ms) = UNITS_MS.into_iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
        let count: u64 = digits.parse().map_err(|_| error())?;
        // A thousand years is more than any policy means, and keeps every later sum in range.
        let ms = count.checked_mul(unit_ms).filter(|ms| *ms <= 365_000 * 86_400_000).ok_or_else(error)?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let (name, unit_ms) = UNITS_MS
            .into_iter()
            .find(|(_, unit_ms)| ms >= u128::from(*unit_ms) && ms.is_multiple_of(u128::from(*unit_ms)))
            .unwrap_or(("ms", 1));
        write!(f, "{}{name}", ms / u128::from(unit_ms))
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

/// A time that something took, shown as a person says it: `4.2 s`, `3 min 20 s`, `2 d 2 h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Milliseconds(pub u64);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0;
        f.pad(&match ms {
            0..1_000 => format!("{ms} ms"),
            1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
            60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
            3_600_000..172_800_000 => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
            _ => format!("{} d {} h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
        })
    }
}

/// An amount of bytes, shown with a binary unit: `1.5 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub u64);

impl fmt::Display for ByteCount {
    #[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
        let mut unit = units.next().unwrap_or_default();
        for larger in units {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = larger;
        }
        if unit == "B" { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_back_as_they_were_written() {
        for text in ["5s", "2h", "15d", "250ms", "90s", "1m"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("60s".parse::<Span>().unwrap().to_string(), "1m");
        assert_eq!("0s".parse::<Span>().unwrap().to_string(), "0ms");
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for text in ["", "5", "s", "-1s", "1.5h", "5 s", "99999999999999999d", "5w"] {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_are_said_as_a_person_says_them() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (4_250, "4.2 s"),
            (200_000, "3 min 20 s"),
            (18_600_000, "5 h 10 min"),
            (180_000_000, "2 d 2 h"),
        ] {
            assert_eq!(Milliseconds(ms).to_string(), text);
        }
        assert_eq!(format!("{:>8}", Milliseconds(999)), "  999 ms");
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(ByteCount(0).to_string(), "0 B");
        assert_eq!(ByteCount(1536).to_string(), "1.5 KiB");
        assert_eq!(ByteCount(4 << 30).to_string(), "4.0 GiB");
    }
}
