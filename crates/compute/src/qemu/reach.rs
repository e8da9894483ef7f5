//! Whether a guest takes a connection.

use std::time::Duration;

use futures::FutureExt;
use lifeboat_model::MachineId;
use qapi::qmp::human_monitor_command;

use super::Host;
use crate::error::ComputeError;
use crate::forward::{self, LIST_CONNECTIONS};
use crate::network::Forward;
use crate::provider::Reached;

impl Host {
    pub(crate) async fn reach_guest(
        &self,
        machine: MachineId,
        guest_port: u16,
        limit: Duration,
    ) -> Result<Reached, ComputeError> {
        let lock = self.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let live = self.live(machine).await?;
        let Some(host_port) = forward::host_port(&live.state.forwards, guest_port) else {
            return Err(ComputeError::no_forward(machine, guest_port));
        };
        let ask = || {
            let command_line = LIST_CONNECTIONS.to_owned();
            live.qmp.ask(human_monitor_command { cpu_index: None, command_line }).boxed()
        };
        forward::reach(Forward { host_port, guest_port }, limit, ask).await
    }
}
