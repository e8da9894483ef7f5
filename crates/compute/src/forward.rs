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
    forward: Forward,
    limit: Duration,
    list: impl Fn() -> BoxFuture<'a, Result<String, ComputeError>> + Send,
) -> Result<Reached, ComputeError> {
    let Forward { host_port, guest_port } = forward;
    let deadline = Instant::now() + limit;
    let stream = match TcpStream::connect((Ipv4Addr::LOCALHOST, host_port)).await {
        Ok(stream) => stream,
        Err(error) => return Ok(Reached::No(format!("port {host_port} on this machine: {error}"))),
    };
    let mut taken_before = false;
    while Instant::now() < deadline {
        let taken = all_are_taken(&list().await?, host_port);
        // A refusal may come and go between two looks. What the guest has to say stays in the connection.
        let mut byte = [0];
        if matches!(tokio::time::timeout(Duration::ZERO, stream.peek(&mut byte)).await, Ok(Ok(0) | Err(_))) {
            break;
        }
        // At the first look only connections of others may be in the list.
        if taken && taken_before {
            return Ok(Reached::Yes(stream));
        }
        taken_before = taken;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let what = if Instant::now() < deadline { "refuses connections to" } else { "does not answer on" };
    Ok(Reached::No(format!("the guest {what} port {guest_port}")))
}

/// Whether QEMU's list has connections through this forward, and the guest has taken all of them. Its lines are such
/// as `TCP[ESTABLISHED]  22  127.0.0.1  41237  10.0.2.15  22  0  0`; whose each connection is they do not say.
fn all_are_taken(list: &str, host_port: u16) -> bool {
    let states = list.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let state = fields.next()?.strip_prefix("TCP[")?.strip_suffix(']')?;
        let port = fields.nth(2)?.parse::<u16>().ok()?;
        (port == host_port && state != "HOST_FORWARD").then_some(state)
    });
    let mut any = false;
    for state in states {
        if state.starts_with("SYN") {
            return false;
        }
        any |= state == "ESTABLISHED";
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_when_the_guest_has_taken_it() {
        let list = |states: [&str; 2]| {
            let [one, two] = states;
            format!(
                "Hub -1 (net0):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  \
                TCP[{one}]   14       127.0.0.1 41237       10.0.2.15    22     0     0\n  \
                TCP[{two}]   15       127.0.0.1 41237       10.0.2.15    22     0     0\n  \
                TCP[HOST_FORWARD]  11       127.0.0.1 41237       10.0.2.15    22     0     0\n  \
                TCP[HOST_FORWARD]  12       127.0.0.1 41238       10.0.2.15    80     0     0\n"
            )
        };
        assert!(all_are_taken(&list(["ESTABLISHED", "ESTABLISHED"]), 41237));
        assert!(all_are_taken(&list(["ESTABLISHED", "FIN_WAIT_2"]), 41237));
        assert!(!all_are_taken(&list(["ESTABLISHED", "SYN_SENT"]), 41237));
        assert!(!all_are_taken(&list(["ESTABLISHED", "ESTABLISHED"]), 41238));
    }
}
