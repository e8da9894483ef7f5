//! A certificate's serial number.

use std::fmt;
use std::str::FromStr;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

/// The serial number of a certificate: 16 bytes, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial([u8; 16]);

/// The text or the bytes are no serial number of this authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a certificate's serial is 32 hexadecimal digits, not {0:?}")]
pub struct SerialError(String);

impl Serial {
    /// A new random serial number; `None` if the system gives no random numbers.
    pub(crate) fn random() -> Option<Self> {
        let mut bytes = [0; 16];
        SystemRandom::new().fill(&mut bytes).ok()?;
        // The number must be positive and, for one spelling only, have no leading zero.
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Some(Self(bytes))
    }

    pub(crate) const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// From the big-endian bytes in a certificate.
    pub(crate) fn from_certificate(bytes: &[u8]) -> Result<Self, SerialError> {
        let short = match bytes {
            [0, rest @ ..] if rest.len() >= 16 => rest,
            all => all,
        };
        short.try_into().map(Self).map_err(|_| SerialError(format!("{} bytes", bytes.len())))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, SerialError> {
        let error = || SerialError(text.chars().take(80).collect());
        if text.len() != 32 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error());
        }
        u128::from_str_radix(text, 16).map(|number| Self(number.to_be_bytes())).map_err(|_| error())
    }
}

impl TryFrom<String> for Serial {
    type Error = SerialError;

    fn try_from(text: String) -> Result<Self, SerialError> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_serial_turn_into_each_other() {
        let serial = Serial::random().unwrap();
        assert_eq!(serial.to_string().parse(), Ok(serial));
        assert_ne!(Serial::random().unwrap(), serial);
        for text in ["", "beef", "+0000000000000000000000000000000", &serial.to_string()[1..]] {
            assert!(text.parse::<Serial>().is_err(), "{text:?}");
        }
    }
}
