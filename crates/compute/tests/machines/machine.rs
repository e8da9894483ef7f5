//! A small machine to be made, and waiting for what it does.

use std::time::Duration;

use lifeboat_compute::{
    Attachment, CardChange, CopyIdentity, DiskAddress, DiskBus, Firmware, MacAddress, MachineDisk, MachineId,
    MachineSpec, Nic, NicModel, Purpose,
};
use lifeboat_model::{AddressChange, DiskNumber, PointId, ServerId, VaultId};

pub const DISK_BYTES: u64 = 4 << 20;
pub const IDENTITY: CopyIdentity = CopyIdentity {
    vault: VaultId::new(1),
    server: ServerId::new(2),
    point: PointId::new(3),
    purpose: Purpose::Drill,
};
/// Far more than anything here takes, on a machine that does a lot else.
const PATIENCE: Duration = Duration::from_secs(180);

/// A machine with this disk.
pub fn spec(id: u64, source: DiskAddress) -> MachineSpec {
    MachineSpec {
        id: MachineId::new(id),
        name: "a machine, \"tried\"".into(),
        cpus: 1,
        memory_mib: 32,
        firmware: Firmware::Bios,
        disks: vec![MachineDisk { number: DiskNumber(0), source, bytes: DISK_BYTES, bus: DiskBus::Virtio }],
        nics: Vec::new(),
        identity: IDENTITY,
        changes: Vec::new(),
    }
}

/// As many network cards as a machine can have, and the longest orders for them.
pub fn changed_cards() -> (Vec<Nic>, Vec<CardChange>) {
    let far = |number: u8| [203, 113, 200 + number, 199].into();
    (0..8)
        .map(|number| {
            let mac = MacAddress::local(number.into());
            let attachment = Attachment::Isolated { subnet: None, forwards: Vec::new() };
            let address = AddressChange {
                from: far(number),
                to: far(number + 8),
                prefix: 24,
                gateway: Some((far(number + 16), far(number + 24))),
            };
            let name = format!("enx52540000000{number}").parse().unwrap();
            let change = CardChange { mac, name: Some(name), address: Some(address) };
            (Nic { mac, model: NicModel::E1000e, attachment }, change)
        })
        .unzip()
}

/// Asks again and again until there is an answer.
pub async fn wait_for<T>(ask: impl AsyncFn() -> Option<T>) -> Option<T> {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.ok()
}
