//! The vault's settings file.

use std::net::SocketAddr;
use std::path::PathBuf;

use lifeboat_compute::{AccelerationChoice, DiskFormat};
use lifeboat_model::Span;
use serde::Deserialize;

use crate::jobs::{Hydration, MachineLimits};
use crate::retention::RetentionSettings;

/// The settings of a vault, as its TOML file has them. `vault.example.toml` explains each.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where process servers and operators connect to.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// The directory with the vault's certificate, key and the site's authority.
    #[serde(default = "default_credentials")]
    pub credentials: PathBuf,
    /// The state directory.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// The object store's URL; the directory `store` in the state directory when absent.
    #[serde(default)]
    pub store: Option<String>,
    /// The list of revoked certificates, `revoked.json` of the site's authority; it is read again
    /// when it changes. Nothing is revoked when absent.
    #[serde(default)]
    pub revocations: Option<PathBuf>,
    /// How volumes are offered.
    #[serde(default)]
    pub nbd: NbdSettings,
    /// How often points are thinned out and files merged.
    #[serde(default = "default_retention_interval")]
    pub retention_interval: Span,
    /// Bytes a second that the background verification of stored files reads; 0 switches it off.
    #[serde(default = "default_verify_bytes_per_second")]
    pub verify_bytes_per_second: u64,
    /// How files are merged.
    #[serde(default)]
    pub merge: MergeSettings,
    /// How machines are run.
    #[serde(default)]
    pub machines: MachineSettings,
}

/// How machines at the recovery site are run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSettings {
    /// What runs them.
    pub provider: MachineProvider,
    /// Whether the processor executes their instructions.
    pub acceleration: AccelerationChoice,
    /// The address of the libvirt that runs them; for that provider only.
    pub uri: Option<String>,
    /// A directory on libvirt's host for what belongs to machines there; for that provider only.
    pub host_directory: Option<PathBuf>,
    /// Where what belongs to machines is kept; `machines` in the state directory when absent.
    pub directory: Option<PathBuf>,
    /// Power them off when the vault is stopped, and start them again with it. Otherwise they go on
    /// running while the vault is restarted.
    pub stop_with_vault: bool,
    /// Mebibytes of memory that all machines may have together for a drill to begin; half of what the
    /// host has when absent.
    pub memory_mib_max: Option<u64>,
    /// The same for processors. A machine that runs alone may have more.
    pub cpus_max: Option<u32>,
    /// How the disks of a machine are copied once its failover is final.
    pub hydration: HydrationSettings,
}

impl MachineSettings {
    pub(crate) const fn limits(&self) -> MachineLimits {
        MachineLimits { memory_mib: self.memory_mib_max, cpus: self.cpus_max }
    }
}

/// How the disks of a machine are copied to this site's storage by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HydrationSettings {
    /// It begins when a failover was made final. Otherwise an operator begins it.
    pub after_commit: bool,
    /// How the copies are kept.
    pub format: DiskFormat,
    /// Bytes a second that the copy of each disk takes; 0 is no limit.
    pub bytes_per_second: u64,
}

impl Default for HydrationSettings {
    fn default() -> Self {
        // A terabyte in some four hours, and most of a disk's speed left to the guest.
        Self { after_commit: true, format: DiskFormat::Qcow2, bytes_per_second: 64 << 20 }
    }
}

impl HydrationSettings {
    /// What begins after a commit, if something does.
    pub(crate) fn wanted(self) -> Option<Hydration> {
        let bytes_per_second = Some(self.bytes_per_second).filter(|limit| *limit > 0);
        self.after_commit.then_some(Hydration { format: self.format, bytes_per_second })
    }
}

/// What runs machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineProvider {
    /// QEMU on the vault's machine.
    #[default]
    Qemu,
    /// A libvirt, on the vault's machine or on another host.
    Libvirt,
}

/// How files between retained points are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MergeSettings {
    /// Bytes a second that merging reads and writes; 0 is no limit.
    pub bytes_per_second: u64,
    /// The base of a disk is rewritten when so many percent of its data lie over it.
    pub fold_percent: u64,
}

impl Default for MergeSettings {
    fn default() -> Self {
        Self { bytes_per_second: 32 << 20, fold_percent: 25 }
    }
}

impl From<MergeSettings> for RetentionSettings {
    fn from(settings: MergeSettings) -> Self {
        Self {
            merge_bytes_per_second: settings.bytes_per_second,
            fold_percent: settings.fold_percent,
            ..Self::default()
        }
    }
}

/// How volumes are offered over NBD.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NbdSettings {
    /// The directory of the Unix socket for programs on the vault's machine.
    pub socket_directory: PathBuf,
    /// Where NBD clients elsewhere connect to, over TLS with an operator's certificate; nowhere
    /// when absent.
    pub listen: Option<SocketAddr>,
    /// The name by which they reach this machine, as in the vault's certificate; the address of
    /// `listen` when absent.
    pub host: Option<String>,
    /// Mebibytes of decoded data that all volumes together keep in memory; an eighth of the memory, but
    /// 256 to 4096, when absent.
    pub frame_cache_mib: Option<usize>,
}

impl Default for NbdSettings {
    fn default() -> Self {
        Self { socket_directory: "/run/lifeboat/nbd".into(), listen: None, host: None, frame_cache_mib: None }
    }
}

/// The settings cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("the settings of the vault cannot be understood: {0}")]
pub struct SettingsError(#[from] toml::de::Error);

impl Settings {
    /// Reads the text of a settings file.
    ///
    /// # Errors
    /// When it is no TOML, has a setting that there is not, or a value that cannot be meant.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        Ok(toml::from_str(text)?)
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 443))
}

fn default_credentials() -> PathBuf {
    "/etc/lifeboat/vault".into()
}

fn default_state() -> PathBuf {
    "/var/lib/lifeboat/vault".into()
}

fn default_retention_interval() -> Span {
    Span::seconds(60)
}

fn default_verify_bytes_per_second() -> u64 {
    4 << 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_shows_the_defaults() {
        let example = Settings::parse(include_str!("../vault.example.toml")).unwrap();
        assert_eq!(example, Settings::parse("").unwrap());
    }

    #[test]
    fn each_setting_of_the_example_that_is_commented_out_is_understood() {
        let text: String = include_str!("../vault.example.toml")
            .lines()
            .map(|line| format!("{}\n", line.strip_prefix("#= ").unwrap_or(line)))
            .collect();
        let settings = Settings::parse(&text).unwrap();
        assert!(
            settings.store.is_some() && settings.revocations.is_some() && settings.nbd.listen.is_some(),
            "{settings:?}"
        );
    }

    #[test]
    fn a_misspelt_setting_is_named() {
        let error = Settings::parse("retension_interval = \"1m\"").unwrap_err().to_string();
        assert!(error.contains("retension_interval"), "{error}");
    }
}
