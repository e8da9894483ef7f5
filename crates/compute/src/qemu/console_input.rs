//! What an operator types on a guest's serial console.
//!
//! QEMU writes what the guest says to the console's file, whether or not somebody is connected to its socket. A
//! connection lasts until the guest has read what was written: QEMU hangs up then.

use std::io::{self, ErrorKind};
use std::time::Duration;

use lifeboat_model::MachineId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Host;
use crate::directory::CONSOLE_SOCKET;
use crate::error::ComputeError;

/// A guest that reads its console reads a few bytes at a time, and one in emulation takes a while for that.
const READ_LIMIT: Duration = Duration::from_secs(10);

impl Host {
    pub(crate) async fn write_console(&self, machine: MachineId, input: &[u8]) -> Result<(), ComputeError> {
        let directory = self.machines.directory(machine);
        let socket = match directory.connect(CONSOLE_SOCKET).await {
            Ok(socket) => socket,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                let lock = self.machines.lock_of(machine);
                let _one_at_a_time = lock.lock().await;
                self.live(machine).await?;
                let why = "it was started by an earlier version, whose consoles can only be read; it takes input after \
                           its next start";
                return Err(ComputeError::NotSupported { machine, why: why.into() });
            }
            Err(error) => return Err(ComputeError::io("connect to", directory.file(CONSOLE_SOCKET))(error)),
        };
        match tokio::time::timeout(READ_LIMIT, write(socket, input)).await {
            Err(_) => Err(ComputeError::ConsoleNotRead { machine, limit: READ_LIMIT }),
            Ok(written) => written.map_err(ComputeError::io("write to", directory.file(CONSOLE_SOCKET))),
        }
    }
}

/// Writes, and waits until QEMU has passed all of it to the guest.
async fn write(mut socket: UnixStream, input: &[u8]) -> io::Result<()> {
    let (mut from, mut to) = socket.split();
    let writing = async {
        to.write_all(input).await?;
        to.shutdown().await
    };
    // The guest waits while what it says is not taken here; its console's file has it as well.
    let draining = async {
        let mut said = [0; 4096];
        while from.read(&mut said).await? > 0 {}
        Ok(())
    };
    tokio::try_join!(writing, draining).map(drop)
}
