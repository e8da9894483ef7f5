//! The settings of an agent: one TOML file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_model::Span;
use serde::Deserialize;

/// The least memory that a useful agent can do with.
const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// The settings of an agent. `agent.example.toml` explains each of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Addresses of the process server, tried in order: `https://192.0.2.10:9443`.
    pub process_servers: Vec<String>,
    /// Directory with `certificate.pem`, `key.pem` and `authority.pem`.
    #[serde(default = "default_credentials")]
    pub credentials: PathBuf,
    /// Directory for the record and the status socket. Best on a disk that is not protected.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// The server's name, for people; the host's name when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// The protected disks. A new disk gets the next number, in this order.
    #[serde(default)]
    pub disks: Vec<String>,
    /// Directory on a BPF file system for the tracking programs.
    #[serde(default = "default_pin_dir")]
    pub pin_dir: PathBuf,
    /// After this the watchdog thaws file systems, whatever else happens.
    #[serde(default = "default_freeze_timeout")]
    pub freeze_timeout: Span,
    /// Memory for changed blocks, in bytes.
    #[serde(default = "default_memory_bytes")]
    pub memory_bytes: u64,
    /// What a planned failover does to this server.
    #[serde(default)]
    pub planned_failover: PlannedFailover,
}

/// What a planned failover does to this server. Only what stands here is ever run, whatever the recovery
/// site asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlannedFailover {
    /// Stops the services: a program and its arguments; nothing is stopped when empty.
    pub stop: Vec<String>,
    /// Starts them again when the planned failover is given up.
    pub start: Vec<String>,
    /// What to do when the copy has taken over, such as powering off.
    pub afterwards: Vec<String>,
    /// How long each of them may take.
    pub within: Span,
}

impl Default for PlannedFailover {
    fn default() -> Self {
        Self { stop: Vec::new(), start: Vec::new(), afterwards: Vec::new(), within: Span::seconds(300) }
    }
}

fn default_credentials() -> PathBuf {
    "/etc/lifeboat/agent".into()
}

fn default_state() -> PathBuf {
    "/var/lib/lifeboat-agent".into()
}

fn default_pin_dir() -> PathBuf {
    "/sys/fs/bpf/lifeboat".into()
}

fn default_freeze_timeout() -> Span {
    Span::seconds(3)
}

fn default_memory_bytes() -> u64 {
    64 << 20
}

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the settings {}: {source}; name the file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML of the right form.
    #[error("the settings {} are wrong: {message}; crates/agent/agent.example.toml explains each of them", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// A value makes no sense.
    #[error("the setting {setting} in {} is wrong: {why}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Which setting.
        setting: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
}

impl Settings {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, or says something that cannot be meant.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, SettingsError> {
        let settings: Self = toml::from_str(text).map_err(|error| SettingsError::Form {
            path: path.to_owned(),
            message: error.to_string().trim().replace('\n', " "),
        })?;
        let wrong = |setting, why: String| SettingsError::Value { path: path.to_owned(), setting, why };
        if settings.process_servers.is_empty() {
            return Err(wrong(
                "process_servers",
                "name at least one, such as https://192.0.2.10:9443".into(),
            ));
        }
        for url in &settings.process_servers {
            check_url(url).map_err(|why| wrong("process_servers", why))?;
        }
        for (index, disk) in settings.disks.iter().enumerate() {
            if !disk.starts_with('/') {
                return Err(wrong(
                    "disks",
                    format!("{disk:?} is not an absolute path such as /dev/disk/by-id/..."),
                ));
            }
            if settings.disks[..index].contains(disk) {
                return Err(wrong("disks", format!("{disk:?} is named twice")));
            }
        }
        if settings.disks.len() > 1024 {
            return Err(wrong("disks", "an agent protects at most 1024 disks".into()));
        }
        let freeze = settings.freeze_timeout.duration();
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&freeze) {
            return Err(wrong("freeze_timeout", format!("{freeze:?} is not between 100ms and 1m")));
        }
        let planned = &settings.planned_failover;
        for (setting, command) in [
            ("planned_failover.stop", &planned.stop),
            ("planned_failover.start", &planned.start),
            ("planned_failover.afterwards", &planned.afterwards),
        ] {
            if command.first().is_some_and(|program| program.trim().is_empty()) {
                return Err(wrong(
                    setting,
                    "it begins with the program, as in [\"systemctl\", \"stop\", \"postgresql\"]".into(),
                ));
            }
        }
        if planned.within.duration() < Duration::from_secs(1) {
            return Err(wrong("planned_failover.within", "give it a second at least".into()));
        }
        if settings.memory_bytes < MEMORY_BYTES_MIN {
            return Err(wrong("memory_bytes", format!("at least {MEMORY_BYTES_MIN} bytes are needed")));
        }
        Ok(settings)
    }

    /// The server's name, for people.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
    }

    /// The file that remembers what was sent.
    #[must_use]
    pub fn record_file(&self) -> PathBuf {
        self.state.join("record.json")
    }

    /// The file that is locked while an agent runs.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The socket that answers with the agent's status.
    #[must_use]
    pub fn status_socket(&self) -> PathBuf {
        self.state.join("status.sock")
    }

    /// The file that says which file systems are frozen.
    #[must_use]
    pub fn frozen_file(&self) -> PathBuf {
        self.state.join("frozen.json")
    }
}

/// Whether a URL is `https://HOST[:PORT]` and nothing else.
fn check_url(url: &str) -> Result<(), String> {
    let form = || format!("{url:?} is not of the form https://HOST:PORT");
    let authority = url.strip_prefix("https://").ok_or_else(form)?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.is_empty()
        || authority.contains(|c: char| c == '/' || c == '?' || c == '@' || c.is_whitespace())
    {
        return Err(form());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(text, Path::new("agent.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_is_right_and_shows_the_defaults() {
        let example = parse(include_str!("../agent.example.toml")).unwrap();
        let least = parse("process_servers = [\"https://192.0.2.10:9443\"]").unwrap();
        assert_eq!(example, Settings { disks: example.disks.clone(), name: example.name.clone(), ..least });
        assert_eq!(example.disks.len(), 2);
    }

    #[test]
    fn the_example_shows_every_setting() {
        // A setting that is not known is answered with the list of those that are.
        let refused = parse("nothing_of_this_name = 1").unwrap_err();
        let known: Vec<_> =
            refused.rsplit("expected one of").next().unwrap().split('`').skip(1).step_by(2).collect();
        assert!(known.len() >= 8 && known.contains(&"pin_dir"), "{refused}");
        let example: toml::Table = include_str!("../agent.example.toml").parse().unwrap();
        let missing: Vec<_> = known.into_iter().filter(|setting| !example.contains_key(*setting)).collect();
        assert!(missing.is_empty(), "{missing:?} are missing in agent.example.toml");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let base = "process_servers = [\"https://192.0.2.10:9443\"]\n";
        for (text, word) in [
            ("", "process_servers"),
            ("process_servers = []", "process_servers"),
            ("process_servers = [\"http://192.0.2.10\"]", "https://HOST:PORT"),
            ("process_servers = [\"https://a/b\"]", "https://HOST:PORT"),
            (&format!("{base}disks = [\"sda\"]"), "absolute"),
            (&format!("{base}disks = [\"/dev/sda\", \"/dev/sda\"]"), "twice"),
            (&format!("{base}freeze_timeout = \"1h\""), "freeze_timeout"),
            (&format!("{base}memory_bytes = 5"), "memory_bytes"),
            (&format!("{base}planned_failover.stop = [\"\"]"), "planned_failover.stop"),
            (&format!("{base}planned_failover.within = \"0s\""), "planned_failover.within"),
            (&format!("{base}disk = []"), "unknown field `disk`"),
            (&format!("{base}disk = []"), "agent.toml"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
