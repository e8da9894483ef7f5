//! What runs the machines of a vault, as its settings say.

use std::sync::Arc;

use lifeboat_compute::{
    ComputeError, LibvirtProvider, LibvirtSettings, NbdOverTls, Provider, QemuProvider, QemuSettings,
};
use lifeboat_model::VaultId;

use crate::settings::{MachineProvider, Settings};

/// The directory of libvirt's machines in that of all: QEMU's own know nothing of them.
const LIBVIRT: &str = "libvirt";

/// Machines cannot be run as the settings say.
#[derive(Debug, thiserror::Error)]
pub enum MachinesError {
    /// The provider cannot be used.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// libvirt is to run machines, and it is not said which.
    #[error("[machines] has provider = \"libvirt\" without uri: add one, such as uri = \"qemu:///system\"")]
    NoUri,
    /// A setting of another provider.
    #[error("[machines] has {setting}, which is for libvirt only: add provider = \"libvirt\", or remove it")]
    NotLibvirt {
        /// Which.
        setting: &'static str,
    },
}

/// Opens what runs machines. `over_tls` says where NBD clients elsewhere reach volumes.
pub(crate) async fn provider(
    settings: &Settings,
    vault: VaultId,
    over_tls: Option<(String, u16)>,
) -> Result<Arc<dyn Provider>, MachinesError> {
    let machines = &settings.machines;
    let directory = machines.directory.clone().unwrap_or_else(|| settings.state.join("machines"));
    match machines.provider {
        MachineProvider::Qemu => {
            let only_libvirt =
                [("uri", machines.uri.is_some()), ("host_directory", machines.host_directory.is_some())];
            if let Some((setting, _)) = only_libvirt.into_iter().find(|(_, is_set)| *is_set) {
                return Err(MachinesError::NotLibvirt { setting });
            }
            let acceleration = machines.acceleration;
            let settings = QemuSettings { acceleration, ..QemuSettings::new(directory) };
            Ok(Arc::new(QemuProvider::open(settings).await?))
        }
        MachineProvider::Libvirt => {
            let uri = machines.uri.as_ref().ok_or(MachinesError::NoUri)?;
            let settings = LibvirtSettings {
                acceleration: machines.acceleration,
                host_directory: machines.host_directory.clone(),
                nbd: over_tls.map(|(host, port)| NbdOverTls { host, port }),
                ..LibvirtSettings::new(directory.join(LIBVIRT), uri, vault)
            };
            Ok(Arc::new(LibvirtProvider::open(settings).await?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn opened(machines: &str) -> Result<Arc<dyn Provider>, MachinesError> {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::parse(&format!("[machines]\n{machines}")).unwrap();
        settings.state = dir.path().to_owned();
        provider(&settings, VaultId::new(1), None).await
    }

    #[tokio::test]
    async fn settings_that_contradict_each_other_are_refused_with_what_to_change() {
        for (machines, what) in [
            ("provider = \"libvirt\"", "add one, such as uri = \"qemu:///system\""),
            ("uri = \"qemu:///system\"", "has uri, which is for libvirt only"),
            ("host_directory = \"/srv\"", "has host_directory, which is for libvirt only"),
            ("provider = \"libvirt\"\nuri = \"qemu+tcp://host/system\"", "it is not encrypted"),
        ] {
            let error = opened(machines).await.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[tokio::test]
    async fn a_libvirt_that_is_not_there_does_not_keep_a_vault_from_starting() {
        opened("provider = \"libvirt\"\nuri = \"qemu+unix:///system?socket=/nowhere\"").await.unwrap();
    }
}
