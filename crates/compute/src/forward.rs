//! Ports on this machine's loopback that reach a guest in QEMU's user network.
//!
//! The user network answers on a forward's host port itself and only then asks the guest, so a connection
//! to it proves nothing. Its list of connections does: it says in which state each is on the guest's side.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::error::ComputeError;
use crate::network::{Attachment, Forward, Nic};
use crate::provider::Reached;

/// Free host ports are found by asking for one and giving it back, so another may take it in between.
pub(crate) const PORT_ATTEMPTS: usize = 4;
/// What QEMU says when a port is taken.
pub(crate) const PORT_TAKEN: &str = "host forwarding rule";
/// The question to QEMU's monitor about the connections of the user network.
pub(crate) const LIST_CONNECTIONS: &str = "info usernet";
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Whether starting again may help when a port is taken.
pub(crate) fn draws_a_port(nics: &[Nic]) -> bool {
    wanted_forwards(nics).any(|forward| forward.host_port == 0)
}

fn wanted_forwards(nics: &[Nic]) -> impl Iterator<Item = Forward> {
    nics.iter().flat_map(|nic| match &nic.attachment {
        Attachment::Isolated { forwards, .. } => forwards.clone(),
        Attachment::Bridge { .. } | Attachment::Shared { .. } => Vec::new(),
    })
}

/// The forwards of all interfaces, with free host ports where any will do.
pub(crate) fn free_forwards(nics: &[Nic]) -> io::Result<Vec<Forward>> {
    // All stay taken until the last is found, so that they differ.
    let mut taken = Vec::new();
    let mut forwards = Vec::new();
    for mut forward in wanted_forwards(nics) {
        if forward.host_port == 0 {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            forward.host_port = listener.local_addr()?.port();
            taken.push(listener);
        }
        forwards.push(forward);
    }
    Ok(forwards)
}

/// The host port of the forward to this port of the guest.
pub(crate) fn host_port(forwards: &[Forward], guest_port: u16) -> Option<u16> {
    forwards.iter().find(|forward| forward.guest_port == guest_port).map(|forward| forward.host_port)
}

/// Connects through a forward and waits until the guest takes the connection, refuses it, or the time is over.
/// `list` asks QEMU for [`LIST_CONNECTIONS`].
pub(crate) async fn reach<'a>(
    Forward { host_port, guest_port }: Forward,
    limit: Duration,
    list: impl Fn() -> BoxFuture<'a, Result<String, ComputeError>> + Send,
) -> Result<Reached, ComputeError> {
    let deadline = Instant::now() + limit;
    let stream = match TcpStream::connect((Ipv4Addr::LOCALHOST, host_port)).await {
        Ok(stream) => stream,
        Err(error) => return Ok(Reached::No(format!("port {host_port} on this machine: {error}"))),
    };
    let own_port = stream.local_addr().map_err(ComputeError::io("name", "a connection"))?.port();
    let mut seen = false;
    while Instant::now() < deadline {
        match state_of(&list().await?, own_port) {
            Some("ESTABLISHED") => return Ok(Reached::Yes(stream)),
            Some(_) => seen = true,
            // It was there and is no longer: the guest refused.
            None if seen => break,
            None => {}
        }
        // A refusal may come and go between two looks.
        let mut byte = [0];
        if matches!(stream.try_read(&mut byte), Ok(0)) {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let what = if Instant::now() < deadline { "refuses connections to" } else { "does not answer on" };
    Ok(Reached::No(format!("the guest {what} port {guest_port}")))
}

/// The state of the connection from this port in QEMU's list, which has lines such as
/// `TCP[ESTABLISHED]  14  127.0.0.1  41237  10.0.2.2  53122  0  0`.
fn state_of(list: &str, own_port: u16) -> Option<&str> {
    list.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let state = fields.next()?.strip_prefix("TCP[")?.strip_suffix(']')?;
        let port = fields.nth(4)?.parse::<u16>().ok()?;
        (port == own_port).then_some(state)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_connection_is_found_by_its_port() {
        let list = "Hub -1 (net0):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  \
            TCP[ESTABLISHED]   14       127.0.0.1 41237        10.0.2.2 53122     0     0\n  \
            TCP[SYN_SENT]      15       127.0.0.1 41237        10.0.2.2 53123     0     0\n  \
            TCP[HOST_FORWARD]  11       127.0.0.1 41237       10.0.2.15    22     0     0\n";
        assert_eq!(state_of(list, 53122), Some("ESTABLISHED"));
        assert_eq!(state_of(list, 53123), Some("SYN_SENT"));
        assert_eq!(state_of(list, 53124), None);
    }
}
