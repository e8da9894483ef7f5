//! Guests that are reached at an address of their own, and not through a forward of the host's.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::network::{Attachment, Nic};
use crate::provider::Reached;

/// Why a guest in a network cannot be reached.
pub(crate) const NO_ADDRESS: &str = "the address of the guest is not known: it has asked no DHCP server of its network \
     for one, and none was set (`lifeboat target set --address`)";

/// Whether a guest has interfaces that others on the wire may reach.
pub(crate) fn is_on_wire(nics: &[Nic]) -> bool {
    nics.iter().any(|nic| !matches!(nic.attachment, Attachment::Isolated { .. }))
}

/// The address on a bridge that a guest was made with.
pub(crate) fn on_bridge(nics: &[Nic]) -> Option<Ipv4Addr> {
    nics.iter().find_map(|nic| match nic.attachment {
        Attachment::Bridge { address, .. } => address,
        Attachment::Isolated { .. } | Attachment::Shared { .. } => None,
    })
}

/// Connects to a guest from the network that this process is in.
pub(crate) async fn connect(to: SocketAddrV4, limit: Duration) -> io::Result<TcpStream> {
    match tokio::time::timeout(limit, TcpStream::connect(to)).await {
        Ok(connected) => connected,
        Err(_) => Err(ErrorKind::TimedOut.into()),
    }
}

/// What came of connecting to a guest.
pub(crate) fn reached(to: SocketAddrV4, connected: io::Result<TcpStream>) -> Reached {
    match connected {
        Ok(stream) => Reached::Yes(stream),
        Err(error) => {
            let what = match error.kind() {
                ErrorKind::ConnectionRefused => "refuses connections to".to_owned(),
                ErrorKind::TimedOut | ErrorKind::HostUnreachable => "does not answer on".to_owned(),
                _ => format!("cannot be reached ({error}) on"),
            };
            Reached::No(format!("the guest at {} {what} port {}", to.ip(), to.port()))
        }
    }
}
