//! Whether a guest takes a connection: through a forward, or at its address in the network that it is in.

use std::net::SocketAddrV4;
use std::time::Duration;

use futures::FutureExt;
use lifeboat_model::MachineId;
use qapi::qmp::human_monitor_command;

use super::Host;
use crate::address::{self, NO_ADDRESS};
use crate::error::ComputeError;
use crate::forward::{self, LIST_CONNECTIONS};
use crate::network::Forward;
use crate::provider::Reached;
use crate::spec::MachineSpec;

impl Host {
    pub(crate) async fn reach_guest(
        &self,
        machine: MachineId,
        guest_port: u16,
        limit: Duration,
    ) -> Result<Reached, ComputeError> {
        match self.forward_to(machine, guest_port).await? {
            Ok(host_port) => {
                let ask = || self.connections(machine).boxed();
                forward::reach(Forward { host_port, guest_port }, limit, ask).await
            }
            Err(spec) => self.reach_address(&spec, guest_port, limit).await,
        }
    }

    /// The port on this machine that leads to one of the guest, or else the machine as it was made.
    async fn forward_to(
        &self,
        machine: MachineId,
        guest_port: u16,
    ) -> Result<Result<u16, MachineSpec>, ComputeError> {
        let lock = self.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let state = self.live(machine).await?.state;
        Ok(forward::host_port(&state.forwards, guest_port).ok_or(state.spec))
    }

    /// The connections of its user network. Between two looks others may speak to the machine.
    async fn connections(&self, machine: MachineId) -> Result<String, ComputeError> {
        let lock = self.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let live = self.live(machine).await?;
        let command_line = LIST_CONNECTIONS.to_owned();
        live.qmp.ask(human_monitor_command { cpu_index: None, command_line }).await
    }

    /// Connects to a guest at its address, in the network that it is in.
    async fn reach_address(
        &self,
        spec: &MachineSpec,
        guest_port: u16,
        limit: Duration,
    ) -> Result<Reached, ComputeError> {
        if !address::is_on_wire(&spec.nics) {
            return Err(ComputeError::no_forward(spec.id, guest_port));
        }
        let Some(address) = self.guest_address(spec) else {
            return Ok(Reached::No(NO_ADDRESS.into()));
        };
        let to = SocketAddrV4::new(address, guest_port);
        let connected = match self.namespace_of(spec)? {
            Some(namespace) => namespace.connect(to, limit).await,
            None => address::connect(to, limit).await,
        };
        Ok(address::reached(to, connected))
    }
}
