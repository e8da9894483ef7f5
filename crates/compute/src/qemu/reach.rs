//! Whether a guest takes a connection.
//!
//! QEMU's user network answers on a forward's host port itself and only then asks the guest, so a connection
//! to it proves nothing. Its list of connections does: it says in which state each is on the guest's side.
//! In a network or on a bridge the guest itself answers, if its address is known.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use lifeboat_model::MachineId;
use qapi::qmp::human_monitor_command;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Host;
use crate::error::ComputeError;
use crate::network::{Attachment, Nic};
use crate::provider::Reached;
use crate::spec::MachineSpec;

const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Host {
    pub(crate) async fn reach_guest(
        &self,
        machine: MachineId,
        guest_port: u16,
        limit: Duration,
    ) -> Result<Reached, ComputeError> {
        let host_port = match self.forward_to(machine, guest_port).await? {
            Ok(host_port) => host_port,
            Err(spec) => return self.reach_address(&spec, guest_port, limit).await,
        };
        let deadline = Instant::now() + limit;
        let stream = match TcpStream::connect((Ipv4Addr::LOCALHOST, host_port)).await {
            Ok(stream) => stream,
            Err(error) => return Ok(Reached::No(format!("port {host_port} on this machine: {error}"))),
        };
        let own_port = stream.local_addr().map_err(ComputeError::io("name", "a connection"))?.port();
        let mut seen = false;
        while Instant::now() < deadline {
            let list = self.connections(machine).await?;
            match state_of(&list, own_port) {
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

    /// The port on this machine that leads to one of the guest, or else the machine as it was made.
    async fn forward_to(
        &self,
        machine: MachineId,
        guest_port: u16,
    ) -> Result<Result<u16, MachineSpec>, ComputeError> {
        let lock = self.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let live = self.live(machine).await?;
        Ok(live.host_port(guest_port).ok_or_else(|| live.state.spec.clone()))
    }

    /// The connections of its user network. Between two looks others may speak to the machine.
    async fn connections(&self, machine: MachineId) -> Result<String, ComputeError> {
        let lock = self.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let live = self.live(machine).await?;
        let command_line = "info usernet".to_owned();
        live.qmp.ask(human_monitor_command { cpu_index: None, command_line }).await
    }
}

impl Host {
    /// Connects to a guest at its address, in the network that it is in.
    async fn reach_address(
        &self,
        spec: &MachineSpec,
        guest_port: u16,
        limit: Duration,
    ) -> Result<Reached, ComputeError> {
        let machine = spec.id;
        let is_on_wire = |nic: &Nic| !matches!(nic.attachment, Attachment::Isolated { .. });
        if !spec.nics.iter().any(is_on_wire) {
            let why = format!("none of its forwards leads to port {guest_port} of the guest");
            return Err(ComputeError::Spec { machine, why });
        }
        let Some(address) = self.guest_address(spec) else {
            return Ok(Reached::No(NO_ADDRESS.into()));
        };
        let to = SocketAddrV4::new(address, guest_port);
        let connected = match self.namespace_of(spec)? {
            Some(namespace) => namespace.connect(to, limit).await,
            None => match tokio::time::timeout(limit, TcpStream::connect(to)).await {
                Ok(connected) => connected,
                Err(_) => Err(ErrorKind::TimedOut.into()),
            },
        };
        Ok(match connected {
            Ok(stream) => Reached::Yes(stream),
            Err(error) => {
                let what = match error.kind() {
                    ErrorKind::ConnectionRefused => "refuses connections to".to_owned(),
                    ErrorKind::TimedOut | ErrorKind::HostUnreachable => "does not answer on".to_owned(),
                    _ => format!("cannot be reached ({error}) on"),
                };
                Reached::No(format!("the guest at {address} {what} port {guest_port}"))
            }
        })
    }
}

/// Why a guest in a network cannot be reached.
const NO_ADDRESS: &str = "the address of the guest is not known: it has asked no DHCP server of its network for one, \
    and none was set (`lifeboat target set --address`)";

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
