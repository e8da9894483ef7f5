//! What agents have found out about their servers: taken, and told in short.

use jiff::Timestamp;
use lifeboat_api as api;
use lifeboat_model::ServerId;
use lifeboat_wire::facts::{Fact, FileSystem, Firmware, Interface, Layer, ServerFacts};

use crate::catalog::FactsRow;
use crate::error::VaultError;
use crate::manifest::{self, MachineManifest};
use crate::vault::{Vault, unknown};

impl Vault {
    /// Takes a server's facts. Those of a server that has failed over stay as they were: its machine is
    /// made of them, and what runs where it was is not it any more.
    ///
    /// # Errors
    /// When there is no such server, or the catalog fails.
    pub async fn take_facts(
        &self,
        server: ServerId,
        facts: ServerFacts,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let lock = self.server_lock(server);
        let _guard = lock.lock().await;
        let row = self.catalog.server(server).await?;
        let row = row.ok_or_else(|| unknown("server", &server.to_string(), Vec::new()))?;
        if row.fenced.is_some() {
            return Ok(());
        }
        self.catalog.put_facts(server, &FactsRow { facts, received: now }).await?;
        self.write_machine_manifest(server).await
    }

    /// Sets how a server's machine is to look.
    ///
    /// # Errors
    /// When there is no such server, or store or catalog fail.
    pub(crate) async fn set_target(
        &self,
        server: ServerId,
        target: &api::TargetSettings,
    ) -> Result<(), VaultError> {
        let lock = self.server_lock(server);
        let _guard = lock.lock().await;
        self.catalog.put_target(server, target).await?;
        self.write_machine_manifest(server).await
    }

    /// Writes beside the server's points what its machine is made of, as the catalog has it: a lost catalog
    /// and a lost source together must not leave a guess.
    async fn write_machine_manifest(&self, server: ServerId) -> Result<(), VaultError> {
        let object = self.names.machine(server);
        let manifest = MachineManifest {
            server,
            facts: self.catalog.facts(server).await?,
            target: self.catalog.target(server).await?,
        };
        let bytes = manifest::encode(&self.manifest_key, &object, &manifest)?;
        Ok(self.store.replace(&object, bytes).await?)
    }
}

/// Facts as an operator sees them.
pub(crate) fn in_short(row: &FactsRow) -> api::Facts {
    let FactsRow { facts, received } = row;
    api::Facts {
        received: *received,
        os: facts.os.known().map(|os| os.name.clone()),
        architecture: facts.architecture.clone(),
        cpus: facts.cpus.known().copied(),
        memory_bytes: facts.memory_bytes.known().copied(),
        firmware: facts.firmware.known().map(|firmware| match firmware {
            Firmware::Bios => api::Firmware::Bios,
            Firmware::Uefi { .. } => api::Firmware::Uefi,
        }),
        root: root(facts).map(on_what),
        boot_ms: facts.boot_ms.known().copied(),
        interfaces: facts.interfaces.known().into_iter().flatten().map(interface).collect(),
        unknown: unknown_facts(facts),
    }
}

/// The root file system.
pub(crate) fn root(facts: &ServerFacts) -> Option<&FileSystem> {
    facts.file_systems.known()?.iter().find(|file_system| file_system.mount_point == "/")
}

/// Such as `ext4 on LVM on sda, sdb`.
fn on_what(file_system: &FileSystem) -> String {
    let layers = file_system.layers.iter().map(|layer| match layer {
        Layer::Lvm => "LVM",
        Layer::Raid => "RAID",
        Layer::Encryption => "encryption",
        Layer::Multipath => "multipath",
        Layer::DeviceMapper => "device mapper",
        Layer::File => "a file",
    });
    let disks = file_system.disks.join(", ");
    let below = layers.chain((!disks.is_empty()).then_some(disks.as_str()));
    std::iter::once(file_system.kind.as_str()).chain(below).collect::<Vec<_>>().join(" on ")
}

fn interface(interface: &Interface) -> api::Interface {
    let addresses = interface.addresses.iter();
    api::Interface {
        name: interface.name.clone(),
        mac: interface.mac.clone(),
        addresses: addresses.map(|of| format!("{}/{}", of.address, of.prefix)).collect(),
        fixed: interface.addresses.iter().any(|of| of.fixed && of.address.is_ipv4()),
    }
}

/// What could not be found out, each with the reason.
pub(crate) fn unknown_facts(facts: &ServerFacts) -> Vec<String> {
    fn reason<T>(what: &str, fact: &Fact<T>) -> Option<String> {
        match fact {
            Fact::Known(_) => None,
            Fact::Unknown(why) => Some(format!("{what}: {why}")),
        }
    }
    let mut unknown: Vec<String> = [
        reason("the system", &facts.os),
        reason("the kernel's command line", &facts.kernel_command_line),
        reason("the firmware", &facts.firmware),
        reason("processors", &facts.cpus),
        reason("memory", &facts.memory_bytes),
        reason("the length of the last start", &facts.boot_ms),
        reason("file systems", &facts.file_systems),
        reason("network interfaces", &facts.interfaces),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(Firmware::Uefi { secure_boot, fallback_loader }) = facts.firmware.known() {
        unknown.extend(reason("Secure Boot", secure_boot));
        unknown.extend(reason("what the EFI system partition starts", fallback_loader));
    }
    for disk in facts.disks.iter().filter(|disk| disk.path.is_some()) {
        unknown.extend(reason(&format!("the partitions of {}", disk.name), &disk.partitions));
    }
    // Drivers have the same reason, mostly all of them.
    let mut reasons: Vec<_> =
        facts.drivers.values().filter_map(|place| reason("drivers of the initramfs", place)).collect();
    reasons.dedup();
    unknown.extend(reasons);
    unknown
}
