//! The directory of a trial site: who has which certificate, settings and state where.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_model::ServerId;
use lifeboat_trust::private_file::{create_private_directory, write_durably};
use lifeboat_trust::{Credentials, Identity, SiteAuthority};
use serde::{Deserialize, Serialize};

use super::Options;
use crate::command::certificate::random_server_id;
use crate::failure::Failure;
use crate::site::Site;

/// Certificates of a trial are good for so long, and made anew when less than a tenth of it is left.
const VALIDITY: Duration = Duration::from_hours(397 * 24);

/// What a trial decides once and then keeps.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    server: ServerId,
    vault_listen: SocketAddr,
    process_server_listen: SocketAddr,
}

/// Where everything of a trial site is.
pub struct Layout {
    pub dir: PathBuf,
    pub server: ServerId,
    pub vault_listen: SocketAddr,
    pub process_server_listen: SocketAddr,
    /// Absent when the agent runs on another machine.
    pub agent_program: Option<PathBuf>,
}

impl Layout {
    /// Makes what is missing: authority, certificates, settings. Everything else stays as it is.
    pub fn prepare(options: &Options, agent_program: Option<PathBuf>) -> Result<Self, Failure> {
        create_private_directory(&options.dir)?;
        let dir = std::path::absolute(&options.dir)?;
        let kept = Kept::load_or_choose(&dir, options)?;
        let layout = Self {
            dir,
            server: kept.server,
            vault_listen: kept.vault_listen,
            process_server_listen: kept.process_server_listen,
            agent_program,
        };
        layout.issue_certificates(options)?;
        layout.write_settings(options)?;
        Ok(layout)
    }

    /// How the command line reaches the vault.
    pub fn site(&self) -> Site {
        Site { vault: format!("https://{}", self.vault_listen), credentials: self.dir.join("operator") }
    }

    pub fn vault_settings(&self) -> PathBuf {
        self.dir.join("vault/vault.toml")
    }

    pub fn process_server_settings(&self) -> PathBuf {
        self.dir.join("process-server/process-server.toml")
    }

    pub fn agent_settings(&self) -> PathBuf {
        self.agent_dir().join("agent.toml")
    }

    /// What the agent has of its own: its settings, its certificate and, if it runs here, its state.
    pub fn agent_dir(&self) -> PathBuf {
        self.dir.join(if self.agent_program.is_some() { "agent" } else { "remote-agent" })
    }

    /// Where the vault's socket is: its path must be short, wherever the trial is.
    fn socket_directory(&self) -> PathBuf {
        Path::new("/run/lifeboat").join(self.server.to_string())
    }

    /// Takes away what is outside the trial's directory, once the roles are stopped.
    pub fn remove_socket_directory(&self) {
        let directory = self.socket_directory();
        // A vault that was killed has left it; the parent goes with the last trial.
        let _ = fs::remove_dir_all(&directory);
        if let Some(parent) = directory.parent() {
            let _ = fs::remove_dir(parent);
        }
    }

    /// The log of a role.
    pub fn log(&self, role: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{role}.log"))
    }

    fn issue_certificates(&self, options: &Options) -> Result<(), Failure> {
        let now = Timestamp::now();
        let home = self.dir.join("authority");
        let authority = if home.exists() {
            SiteAuthority::open(&home)?
        } else {
            SiteAuthority::create(&home, "trial", now)?
        };
        let hosts = |address: SocketAddr| vec![address.ip().to_string(), "localhost".to_owned()];
        let process_server =
            hosts(self.process_server_listen).into_iter().chain(options.remote_agent.clone());
        for (place, identity, hosts) in [
            (self.dir.join("vault/credentials"), Identity::Vault, hosts(self.vault_listen)),
            (
                self.dir.join("process-server/credentials"),
                Identity::ProcessServer("trial".to_owned()),
                process_server.collect(),
            ),
            (self.agent_dir().join("credentials"), Identity::Agent(self.server), Vec::new()),
            (self.dir.join("operator"), Identity::Operator("trial".to_owned()), Vec::new()),
        ] {
            let soon = now + VALIDITY / 10;
            let good = place.exists()
                && Credentials::load(&place, now).is_ok_and(|credentials| {
                    credentials.not_after() > soon
                        && hosts.iter().all(|host| credentials.hosts().contains(host))
                });
            if !good {
                if let Some(parent) = place.parent() {
                    create_private_directory(parent)?;
                }
                authority.issue(&identity, &hosts, VALIDITY, now)?.write_bundle(&place)?;
            }
        }
        create_private_directory(&self.dir.join("logs"))?;
        Ok(())
    }

    fn write_settings(&self, options: &Options) -> Result<(), Failure> {
        // Ctrl-C is to leave nothing running.
        let mut machines = table(vec![("stop_with_vault", true.into())]);
        if let Some(uri) = &options.libvirt {
            machines.insert("provider".to_owned(), "libvirt".into());
            machines.insert("uri".to_owned(), uri.clone().into());
        }
        let vault = table(vec![
            ("listen", self.vault_listen.to_string().into()),
            ("credentials", text(&self.dir.join("vault/credentials"))),
            ("state", text(&self.dir.join("vault/state"))),
            ("revocations", text(&self.dir.join("authority/revoked.json"))),
            ("nbd", table(vec![("socket_directory", text(&self.socket_directory()))]).into()),
            ("machines", machines.into()),
        ]);
        let spool = table(vec![
            // All roles share one disk here, so the thresholds for a spool of its own would be reached early.
            ("warn_below_percent", 10.into()),
            ("critical_below_percent", 5.into()),
            ("throttle_below_percent", 3.into()),
        ]);
        let process_server = table(vec![
            ("name", "trial".into()),
            ("listen", self.process_server_listen.to_string().into()),
            ("vault", self.site().vault.into()),
            ("credentials", text(&self.dir.join("process-server/credentials"))),
            ("state", text(&self.dir.join("process-server/state"))),
            ("spool", spool.into()),
        ]);
        for (file, settings) in [
            (self.vault_settings(), vault),
            (self.process_server_settings(), process_server),
            (self.agent_settings(), self.agent_table(options)),
        ] {
            write_durably(&file, toml::to_string(&settings)?.as_bytes())?;
        }
        Ok(())
    }

    fn agent_table(&self, options: &Options) -> toml::Table {
        let disks: Vec<_> = options.disks.iter().map(|disk| text(disk)).collect();
        let port = self.process_server_listen.port();
        let process_server = options.remote_agent.as_ref().map_or_else(
            || self.process_server_listen.to_string(),
            |host| match host.parse() {
                Ok(address) => SocketAddr::new(address, port).to_string(),
                Err(_) => format!("{host}:{port}"),
            },
        );
        let mut agent = table(vec![
            ("process_servers", vec![format!("https://{process_server}")].into()),
            ("disks", disks.into()),
        ]);
        if options.remote_agent.is_some() {
            agent.insert("credentials".to_owned(), "/etc/lifeboat/credentials".into());
        } else {
            agent.insert("credentials".to_owned(), text(&self.agent_dir().join("credentials")));
            agent.insert("state".to_owned(), text(&self.agent_dir().join("state")));
            // Two trials on one machine must not share their tracking.
            agent.insert("pin_dir".to_owned(), format!("/sys/fs/bpf/lifeboat-{}", self.server).into());
        }
        if let Some(name) = &options.name {
            agent.insert("name".to_owned(), name.clone().into());
        }
        agent
    }
}

impl Kept {
    fn load_or_choose(dir: &Path, options: &Options) -> Result<Self, Failure> {
        let file = dir.join("trial.toml");
        let mut kept = match fs::read_to_string(&file) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                Failure::new(format!("{} is damaged: {}", file.display(), error.message()))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self {
                server: random_server_id()?,
                vault_listen: free_address(443)?,
                process_server_listen: free_address(9443)?,
            },
            Err(error) => return Err(Failure::new(format!("cannot read {}: {error}", file.display()))),
        };
        kept.vault_listen = options.vault_listen.unwrap_or(kept.vault_listen);
        kept.process_server_listen = options.process_server_listen.unwrap_or(kept.process_server_listen);
        if kept.vault_listen == kept.process_server_listen {
            return Err(Failure::new(format!(
                "vault and process server cannot both listen at {}: give one of them another port with --vault-listen \
                 or --process-server-listen",
                kept.vault_listen
            )));
        }
        refuse_taken(kept.vault_listen, "--vault-listen")?;
        refuse_taken(kept.process_server_listen, "--process-server-listen")?;
        write_durably(&file, toml::to_string(&kept)?.as_bytes())?;
        Ok(kept)
    }
}

fn text(path: &Path) -> toml::Value {
    toml::Value::String(path.display().to_string())
}

fn table(entries: Vec<(&str, toml::Value)>) -> toml::Table {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Fails when another program listens there: the trial would take that one's answer for its own.
fn refuse_taken(address: SocketAddr, option: &str) -> Result<(), Failure> {
    match TcpListener::bind(address) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(Failure::new(format!(
            "{address} is taken by another program, perhaps this trial in another terminal: stop that one \
             (ss -ltnp 'sport = :{}' names it) or set another with {option}",
            address.port()
        ))),
        // The role that listens there says what else is wrong.
        _ => Ok(()),
    }
}

/// `wanted` on the loopback address if it is free, else a port that is.
fn free_address(wanted: u16) -> Result<SocketAddr, Failure> {
    let listen = |port| TcpListener::bind(("127.0.0.1", port));
    let listener = listen(wanted).or_else(|_| listen(0));
    listener
        .and_then(|listener| listener.local_addr())
        .map_err(|error| Failure::new(format!("no port of 127.0.0.1 is free: {error}")))
}

pub fn agent_program(options: &Options) -> Result<PathBuf, Failure> {
    if let Some(program) = &options.agent {
        return Ok(program.clone());
    }
    let beside = std::env::current_exe()?.with_file_name("lifeboat-agent");
    if beside.exists() {
        return Ok(beside);
    }
    Err(Failure::new(format!("there is no {}; name the agent's program with --agent", beside.display())))
}
