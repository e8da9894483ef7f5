use std::time::Duration;

/// How much one server gives away.
///
/// The memory that requests can hold is at most `server_bytes_max`, plus a small fixed buffer
/// for each connection. A request waits, unread, until its bytes are free.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections that have chosen an export, over all listeners.
    pub connections_max: usize,
    /// Connections still in their handshake, for each listener. Kept apart so that strangers
    /// on TCP cannot lock out local clients.
    pub handshakes_max: usize,
    /// Requests of one connection that are served at the same time.
    pub in_flight_max: u32,
    /// Bytes that the requests in flight of one connection may hold. At least
    /// [`crate::protocol::PAYLOAD_BYTES_MAX`]; smaller values are raised to it.
    pub connection_bytes_max: u32,
    /// Bytes that the requests in flight of all connections may hold. Raised like
    /// `connection_bytes_max`.
    pub server_bytes_max: u32,
    /// Time for the whole handshake, TLS included.
    pub handshake_timeout: Duration,
    /// Longest time without a single byte of progress in the middle of a request's payload,
    /// or while the client does not take a reply. Between requests a client may be idle for ever.
    pub stall_timeout: Duration,
    /// Time that requests in flight are given when their export is removed. Afterwards they are
    /// dropped and answered with `ESHUTDOWN`.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 256,
            handshakes_max: 64,
            in_flight_max: 64,
            connection_bytes_max: 64 << 20,
            server_bytes_max: 512 << 20,
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
