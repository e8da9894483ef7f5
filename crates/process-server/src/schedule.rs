//! When how much of the line may be used.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the days need no words")]
pub enum Day {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl Day {
    const WEEK: [Self; 7] = [
        Self::Monday,
        Self::Tuesday,
        Self::Wednesday,
        Self::Thursday,
        Self::Friday,
        Self::Saturday,
        Self::Sunday,
    ];

    fn of(weekday: jiff::civil::Weekday) -> Self {
        let days_since_monday = usize::try_from(weekday.to_monday_zero_offset()).unwrap_or(0);
        Self::WEEK[days_since_monday % 7]
    }

    fn before(self) -> Self {
        Self::WEEK[(self as usize + 6) % 7]
    }
}

/// A time of day, written `HH:MM`; `24:00` is the end of the day.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay {
    minutes: u16,
}

/// The text is no time of day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a time of day is HH:MM from 00:00 to 24:00, not {0:?}")]
pub struct TimeOfDayError(String);

impl FromStr for TimeOfDay {
    type Err = TimeOfDayError;

    fn from_str(text: &str) -> Result<Self, TimeOfDayError> {
        let error = || TimeOfDayError(text.chars().take(20).collect());
        let two_digits = |part: &str| -> Option<u16> {
            (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
        };
        let (hours, minutes) = text.split_once(':').ok_or_else(error)?;
        let (hours, minutes) =
            two_digits(hours).zip(two_digits(minutes)).filter(|(_, m)| *m < 60).ok_or_else(error)?;
        let minutes = hours * 60 + minutes;
        if minutes > 24 * 60 { Err(error()) } else { Ok(Self { minutes }) }
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.minutes / 60, self.minutes % 60)
    }
}

impl fmt::Debug for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for TimeOfDay {
    type Error = TimeOfDayError;

    fn try_from(text: String) -> Result<Self, TimeOfDayError> {
        text.parse()
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> Self {
        time.to_string()
    }
}

/// A time of the week in which uploads are limited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandwidthWindow {
    /// The days on which it begins; every day when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<Vec<Day>>,
    /// When it begins, in the machine's local time.
    pub from: TimeOfDay,
    /// When it ends; not later than `from` means on the next day.
    pub to: TimeOfDay,
    /// What all uploads together may use in it, in bytes a second.
    pub bytes_per_second: u64,
}

impl BandwidthWindow {
    fn holds(&self, day: Day, minutes: u16) -> bool {
        let begins_on = |day| self.days.as_ref().is_none_or(|days| days.contains(&day));
        let (from, to) = (self.from.minutes, self.to.minutes);
        if from < to {
            begins_on(day) && (from..to).contains(&minutes)
        } else {
            (begins_on(day) && minutes >= from) || (begins_on(day.before()) && minutes < to)
        }
    }
}

/// The limit at a local time: that of the first window that holds; none when no window does.
#[must_use]
pub fn limit_at(windows: &[BandwidthWindow], local: jiff::civil::DateTime) -> Option<u64> {
    let day = Day::of(local.weekday());
    let minutes = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).unwrap_or(0);
    windows.iter().find(|window| window.holds(day, minutes)).map(|window| window.bytes_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: Option<&[Day]>, from: &str, to: &str, bytes_per_second: u64) -> BandwidthWindow {
        BandwidthWindow {
            days: days.map(<[Day]>::to_vec),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            bytes_per_second,
        }
    }

    fn at(windows: &[BandwidthWindow], text: &str) -> Option<u64> {
        limit_at(windows, text.parse().unwrap())
    }

    #[test]
    fn the_first_window_that_holds_wins() {
        // 2026-11-23 is a Monday.
        let windows = [window(Some(&[Day::Monday]), "08:00", "18:00", 1), window(None, "09:00", "20:00", 2)];
        assert_eq!(at(&windows, "2026-11-23T07:59"), None);
        assert_eq!(at(&windows, "2026-11-23T08:00"), Some(1));
        assert_eq!(at(&windows, "2026-11-23T17:59"), Some(1));
        assert_eq!(at(&windows, "2026-11-23T18:00"), Some(2));
        assert_eq!(at(&windows, "2026-11-24T08:30"), None);
        assert_eq!(at(&windows, "2026-11-24T19:59"), Some(2));
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_it_begins_on() {
        let windows = [window(Some(&[Day::Sunday]), "22:00", "06:00", 7)];
        assert_eq!(at(&windows, "2026-11-22T23:00"), Some(7));
        assert_eq!(at(&windows, "2026-11-23T05:59"), Some(7));
        assert_eq!(at(&windows, "2026-11-23T06:00"), None);
        assert_eq!(at(&windows, "2026-11-23T22:30"), None);
        let all_day = [window(None, "00:00", "24:00", 3)];
        assert_eq!(at(&all_day, "2026-11-23T23:59"), Some(3));
    }

    #[test]
    fn what_is_no_time_of_day_is_refused() {
        for text in ["", "8:00", "08:60", "24:01", "0800", "08:0x", "+8:00", "08:00:00"] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text:?}");
        }
        assert_eq!("24:00".parse::<TimeOfDay>().unwrap().to_string(), "24:00");
    }
}
