//! Where random numbers come from: the system, or a seed in a simulation.

use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// A source of random bytes for ids and keys.
pub trait Randomness: Send + Sync {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// When there are none.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness>;
}

/// The system gives no random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers; nothing that needs a new key or id can go on")]
pub struct NoRandomness;

/// The system's random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        SystemRandom::new().fill(bytes).map_err(|_| NoRandomness)
    }
}

/// A number for a new id.
pub(crate) fn number(randomness: &dyn Randomness) -> Result<u64, NoRandomness> {
    let mut bytes = [0; 8];
    randomness.fill(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The bytes of a new key.
pub(crate) fn key(randomness: &dyn Randomness) -> Result<Zeroizing<[u8; 32]>, NoRandomness> {
    let mut bytes = Zeroizing::new([0; 32]);
    randomness.fill(bytes.as_mut())?;
    Ok(bytes)
}
