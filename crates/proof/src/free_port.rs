//! Ports for servers that tests start; tests of other crates include this file.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// A port of the loopback that nobody listens on, for who will listen a little later. It is none of those that the
/// kernel gives to connections, which would take it in between.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let random = RandomState::new().hash_one(std::process::id());
        let port = 10_000 + u16::try_from(random % 20_000).unwrap();
        let is_new = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        if is_new && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
