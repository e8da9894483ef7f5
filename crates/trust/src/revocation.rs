//! The set of revoked certificates that a running server asks.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use crate::Serial;

/// The serials of revoked certificates, shared: every clone sees what is added to any of them.
/// Whoever runs a server fills it, from the authority's list or from a message, at any time.
#[derive(Clone, Debug, Default)]
pub struct Revocations(Arc<RwLock<HashSet<Serial>>>);

impl Revocations {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether `serial` is revoked.
    #[must_use]
    pub fn contains(&self, serial: &Serial) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(serial)
    }

    /// Adds one serial.
    pub fn add(&self, serial: Serial) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(serial);
    }

    /// Replaces the whole set.
    pub fn replace(&self, serials: impl IntoIterator<Item = Serial>) {
        let serials = serials.into_iter().collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = serials;
    }
}
