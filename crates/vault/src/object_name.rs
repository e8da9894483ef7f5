//! The names of objects in the store.
//!
//! ```text
//! vault/<vault>/vault.json
//! vault/<vault>/servers/<server>/server.json
//! vault/<vault>/servers/<server>/machine.json
//! vault/<vault>/servers/<server>/points/<number, 12 digits>-<point>.json
//! vault/<vault>/servers/<server>/disks/<disk>/<epoch, 20 digits>-<part, 6 digits>-<digest, 16>.hrl
//! vault/<vault>/servers/<server>/disks/<disk>/<first>-<last epoch>-<part>-<digest>.hrl   when merged
//! ```
//!
//! The name of a file holds the beginning of its digest, so another content is another object and
//! nothing that a point needs is ever written over.

use lifeboat_model::{Digest, DiskNumber, Epoch, Part, PointId, ServerId, VaultId};

/// Makes the names of one vault's objects.
#[derive(Clone, Copy, Debug)]
pub struct ObjectNames {
    vault: VaultId,
}

/// The folder that holds every vault of a store.
pub(crate) const VAULTS: &str = "vault";

impl ObjectNames {
    /// Of this vault.
    #[must_use]
    pub const fn new(vault: VaultId) -> Self {
        Self { vault }
    }

    /// The vault.
    #[must_use]
    pub const fn vault_id(&self) -> VaultId {
        self.vault
    }

    /// The manifest of the vault itself.
    #[must_use]
    pub fn vault(&self) -> String {
        format!("{VAULTS}/{}/vault.json", self.vault)
    }

    /// The folder of all servers, without a slash at the end.
    #[must_use]
    pub fn servers(&self) -> String {
        format!("{VAULTS}/{}/servers", self.vault)
    }

    /// The manifest of a server: its name, policy, disks and wrapped keys.
    #[must_use]
    pub fn server(&self, server: ServerId) -> String {
        format!("{}/{server}/server.json", self.servers())
    }

    /// What a server's machine is made of: its facts, and what an operator has set.
    #[must_use]
    pub fn machine(&self, server: ServerId) -> String {
        format!("{}/{server}/machine.json", self.servers())
    }

    /// The folder of a server's point manifests, without a slash at the end.
    #[must_use]
    pub fn points(&self, server: ServerId) -> String {
        format!("{}/{server}/points", self.servers())
    }

    /// The manifest of a point, the `number`th of its server.
    #[must_use]
    pub fn point(&self, server: ServerId, number: u64, point: PointId) -> String {
        format!("{}/{number:012}-{point}.json", self.points(server))
    }

    /// The folder of a disk's files, without a slash at the end.
    #[must_use]
    pub fn disk(&self, server: ServerId, disk: DiskNumber) -> String {
        format!("{}/{server}/disks/{disk}", self.servers())
    }

    /// A part of one epoch.
    #[must_use]
    pub fn file(
        &self,
        server: ServerId,
        disk: DiskNumber,
        epoch: Epoch,
        part: Part,
        digest: &Digest,
    ) -> String {
        format!("{}/{:020}-{:06}-{}.hrl", self.disk(server, disk), epoch.0, part.0, beginning(digest))
    }

    /// A file into which retention has merged the epochs `first..=last`.
    #[must_use]
    pub fn merged_file(
        &self,
        server: ServerId,
        disk: DiskNumber,
        (first, last): (Epoch, Epoch),
        part: Part,
        digest: &Digest,
    ) -> String {
        format!(
            "{}/{:020}-{:020}-{:06}-{}.hrl",
            self.disk(server, disk),
            first.0,
            last.0,
            part.0,
            beginning(digest)
        )
    }
}

fn beginning(digest: &Digest) -> String {
    digest.0[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_epoch_and_number() {
        let names = ObjectNames::new(VaultId::new(1));
        let server = ServerId::new(2);
        let digest = Digest::of(b"");
        assert_eq!(
            names.file(server, DiskNumber(3), Epoch(17), Part(4), &digest),
            "vault/0000000000000001/servers/0000000000000002/disks/3/00000000000000000017-000004-af1349b9f5f9a1a6.hrl"
        );
        assert!(
            names.point(server, 9, PointId::new(u64::MAX)) < names.point(server, 10, PointId::new(0)),
            "a list of names is in the order of commits"
        );
    }
}
