//! Guests go on when their disks are there again, and copies of disks go on.
//!
//! libvirt does not tell QEMU to wait for an NBD server that is gone for a while. So a guest whose disk gives no
//! answer is stopped instead, before it learns of that, and is let go on here: QEMU then connects anew and asks
//! again for what it got no answer to.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_model::MachineId;
use tokio::net::UnixStream;

use super::Host;
use super::status::{Observed, Run};
use crate::error::ComputeError;
use crate::spec::DiskAddress;

/// How often guests that stand still are looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The same on another host, to which each look is a connection.
const LOOK_AGAIN_ELSEWHERE: Duration = Duration::from_secs(10);

/// Lets guests and copies go on for as long as the provider is there.
pub(crate) async fn look_after_guests(host: Arc<Host>) {
    let pause = if host.virsh.uri().is_local { LOOK_AGAIN } else { LOOK_AGAIN_ELSEWHERE };
    let mut was_well = true;
    loop {
        tokio::time::sleep(pause).await;
        let looked = async {
            host.look_for_stopped().await?;
            host.look_after_copies().await
        };
        let looked = looked.await;
        if let Err(error) = &looked
            && was_well
        {
            tracing::warn!(%error, "cannot look after guests that wait for their disks, and after copies of disks");
        }
        was_well = looked.is_ok();
    }
}

impl Host {
    async fn look_for_stopped(&self) -> Result<(), ComputeError> {
        if self.machines.list()?.is_empty() {
            return Ok(());
        }
        let paused = self.virsh.must(&["list", "--state-paused", "--name"]).await?;
        for machine in self.machines_among(&paused) {
            self.resume_if_stopped(machine).await?;
        }
        Ok(())
    }

    async fn resume_if_stopped(&self, machine: MachineId) -> Result<(), ComputeError> {
        let lock = self.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let directory = self.machines.directory(machine);
        let Observed::Live(state, Run::WaitsForDisk) = self.observe(&directory).await? else { return Ok(()) };
        for disk in state.disks() {
            if let DiskAddress::NbdUnix { socket, .. } = disk.source
                && UnixStream::connect(socket).await.is_err()
            {
                return Ok(());
            }
        }
        tracing::debug!(%machine, "a guest goes on, whose disk gave no answer for a while");
        self.virsh.must(&["resume", &self.name_of(machine)]).await.map(drop)
    }
}
