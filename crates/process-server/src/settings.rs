//! What an operator sets, as TOML. `process-server.example.toml` shows all of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lifeboat_model::Span;
use serde::{Deserialize, Serialize};

use crate::schedule::BandwidthWindow;

/// The settings of a process server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The name of this process server, the same as in its certificate.
    pub name: String,
    /// Where agents connect to.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// The vault's address: `https://HOST` or `https://HOST:PORT`.
    pub vault: String,
    /// The directory that holds this role's certificate, private key and authority.
    #[serde(default = "default_credentials")]
    pub credentials: PathBuf,
    /// The directory that holds everything this process server must not forget, the spool above all.
    /// One process at a time may use it.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// The zstd level, 1 (fast) to 19 (small).
    #[serde(default = "default_compression_level")]
    pub compression_level: i32,
    /// Threads that compress and encrypt; as many as the machine has cores when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Mebibytes of changes that all agents together may have on their way through memory.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u32,
    /// When the spool counts as full, and what happens before.
    #[serde(default)]
    pub spool: SpoolSettings,
    /// How files are uploaded.
    #[serde(default)]
    pub upload: UploadSettings,
    /// Limits of the upload by time of the week; the first one that holds counts.
    #[serde(default)]
    pub bandwidth: Vec<BandwidthWindow>,
}

/// When the spool counts as full, and what happens before. Percentages are of the file system that
/// holds the spool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolSettings {
    /// With less free than this, a warning is raised.
    pub warn_below_percent: u8,
    /// With less free than this, a critical event is raised, and files that the vault has stored but
    /// not committed are kept there only.
    pub critical_below_percent: u8,
    /// With less free than this, agents are slowed down.
    pub throttle_below_percent: u8,
    /// What each agent may send while it is slowed down, in bytes a second.
    pub throttle_bytes_per_second: u64,
    /// Mebibytes that parts never use. With less free than this, parts are refused and agents keep
    /// their changes until there is room.
    pub reserve_mib: u64,
}

/// How files are uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UploadSettings {
    /// Files that are uploaded at the same time, 1 to 64.
    pub parallel: usize,
    /// How long a request to the vault may take that carries no file.
    pub request_timeout: Span,
    /// How long an upload may stand still before it is begun anew.
    pub stall_timeout: Span,
    /// The longest pause between two attempts while the vault cannot be reached.
    pub retry_max: Span,
    /// The longest pause between two attempts after the vault refused a file or a point.
    pub refused_retry_max: Span,
    /// How long an agent's comparison waits for its changes to reach the vault.
    pub digest_wait: Span,
}

impl Default for SpoolSettings {
    fn default() -> Self {
        Self {
            warn_below_percent: 30,
            critical_below_percent: 25,
            throttle_below_percent: 20,
            throttle_bytes_per_second: 4 << 20,
            reserve_mib: 1024,
        }
    }
}

impl Default for UploadSettings {
    fn default() -> Self {
        Self {
            parallel: 4,
            request_timeout: Span::seconds(30),
            stall_timeout: Span::seconds(60),
            retry_max: Span::seconds(30),
            refused_retry_max: Span::seconds(300),
            digest_wait: Span::seconds(60),
        }
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 9443))
}

fn default_credentials() -> PathBuf {
    "/etc/lifeboat/process-server".into()
}

fn default_state() -> PathBuf {
    "/var/lib/lifeboat/process-server".into()
}

fn default_compression_level() -> i32 {
    lifeboat_hrl::LEVEL_DEFAULT
}

fn default_memory_mib() -> u32 {
    128
}

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the settings {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no TOML, or holds what is not known.
    #[error("the settings are not understood: {0}")]
    Toml(#[from] Box<toml::de::Error>),
    /// A value cannot be.
    #[error("the setting {setting} cannot be {value}: {why}")]
    Value {
        /// Its name.
        setting: &'static str,
        /// What it is set to.
        value: String,
        /// Why not, and what it could be.
        why: &'static str,
    },
}

impl Settings {
    /// Reads and checks a settings file.
    ///
    /// # Errors
    /// When it cannot be read, understood or used.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
        Self::from_toml(&text)
    }

    /// Reads and checks settings.
    ///
    /// # Errors
    /// When they cannot be understood or used.
    pub fn from_toml(text: &str) -> Result<Self, SettingsError> {
        let settings: Self = toml::from_str(text).map_err(Box::new)?;
        settings.check()?;
        Ok(settings)
    }

    /// Checks what a type cannot say.
    ///
    /// # Errors
    /// When a value cannot be.
    pub fn check(&self) -> Result<(), SettingsError> {
        let refuse = |setting, value: &dyn ToString, why| {
            Err(SettingsError::Value { setting, value: value.to_string(), why })
        };
        if !self.vault.starts_with("https://") {
            return refuse("vault", &self.vault, "it is https://HOST or https://HOST:PORT");
        }
        if !lifeboat_hrl::LEVELS.contains(&self.compression_level) {
            return refuse("compression_level", &self.compression_level, "it is 1 to 19");
        }
        if let Some(workers) = self.workers.filter(|workers| !(1..=1024).contains(workers)) {
            return refuse("workers", &workers, "it is 1 to 1024");
        }
        if !(16..=65_536).contains(&self.memory_mib) {
            return refuse("memory_mib", &self.memory_mib, "it is 16 to 65536");
        }
        if !(1..=64).contains(&self.upload.parallel) {
            return refuse("upload.parallel", &self.upload.parallel, "it is 1 to 64");
        }
        let spool = &self.spool;
        let descending =
            [spool.warn_below_percent, spool.critical_below_percent, spool.throttle_below_percent];
        if descending[0] > 99 || !descending.is_sorted_by(|a, b| a >= b) {
            return refuse(
                "spool.warn_below_percent, critical_below_percent, throttle_below_percent",
                &format!("{descending:?}"),
                "they are percentages below 100, the later ones not above the earlier ones",
            );
        }
        if spool.throttle_bytes_per_second == 0 {
            return refuse("spool.throttle_bytes_per_second", &0, "at 0 an agent would never finish a part");
        }
        for window in &self.bandwidth {
            if window.bytes_per_second < 1024 {
                return refuse(
                    "bandwidth.bytes_per_second",
                    &window.bytes_per_second,
                    "below 1024 bytes a second no upload would end",
                );
            }
        }
        for (setting, span) in [
            ("upload.request_timeout", self.upload.request_timeout),
            ("upload.stall_timeout", self.upload.stall_timeout),
            ("upload.retry_max", self.upload.retry_max),
            ("upload.refused_retry_max", self.upload.refused_retry_max),
        ] {
            if span < Span::seconds(1) {
                return refuse(setting, &span, "it is at least 1s");
            }
        }
        Ok(())
    }

    /// Threads that compress and encrypt.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, std::num::NonZero::get))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../process-server.example.toml");
    const SHORT: &str = "name = \"hall-1\"\nvault = \"https://vault.example\"\n";

    #[test]
    fn the_example_shows_every_setting_and_its_default() {
        let example = Settings::from_toml(EXAMPLE).unwrap();
        let mut defaults = Settings::from_toml(SHORT).unwrap();
        assert_eq!(example.bandwidth.len(), 2);
        defaults.name.clone_from(&example.name);
        defaults.vault.clone_from(&example.vault);
        defaults.bandwidth.clone_from(&example.bandwidth);
        defaults.workers = example.workers;
        assert_eq!(example, defaults);
        let all: toml::Table = toml::from_str(&toml::to_string(&defaults).unwrap()).unwrap();
        for (name, value) in all {
            assert!(EXAMPLE.contains(&name), "the example does not show {name}");
            for inner in value.as_table().into_iter().flat_map(|table| table.keys()) {
                assert!(EXAMPLE.contains(inner.as_str()), "the example does not show {name}.{inner}");
            }
        }
    }

    #[test]
    fn a_misspelt_or_impossible_setting_is_refused_by_name() {
        for (line, word) in [
            ("nmae = 1", "nmae"),
            ("compression_level = 0", "compression_level"),
            ("workers = 0", "workers"),
            ("memory_mib = 1", "memory_mib"),
            ("[spool]\nwarn_below_percent = 10", "warn_below_percent"),
            ("[spool]\nwarn_below = 10", "warn_below"),
            ("[upload]\nparallel = 0", "parallel"),
            ("[upload]\nstall_timeout = \"10ms\"", "stall_timeout"),
            ("[[bandwidth]]\nfrom = \"08:00\"\nto = \"25:00\"\nbytes_per_second = 1", "25:00"),
            ("[[bandwidth]]\nfrom = \"08:00\"\nto = \"20:00\"\nbytes_per_second = 1", "bytes_per_second"),
        ] {
            let error = Settings::from_toml(&format!("{SHORT}{line}\n")).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
        let plain = "name = \"hall-1\"\nvault = \"http://vault.example\"\n";
        assert!(Settings::from_toml(plain).unwrap_err().to_string().contains("https://"));
    }
}
