//! A vault and a process server without an agent, for agents that are simulated.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lifeboat_proof::{Programs, free_port, run, scratch, wait_for};
use serde_json::Value;
use tempfile::TempDir;

/// Machines of one processor each that may run at once: ten drills beside one that has failed over.
const MACHINES_MAX: usize = 11;

/// Both roles, running. Ended when dropped.
pub struct Roles {
    pub process_server: SocketAddr,
    pub process_server_pid: u32,
    pub vault_pid: u32,
    vault: SocketAddr,
    home: TempDir,
    children: Vec<Child>,
}

impl Roles {
    /// Issues certificates, writes settings, starts the vault, then the process server.
    pub fn start() -> Self {
        let home = tempfile::Builder::new().prefix("lifeboat-roles-").tempdir_in(scratch()).unwrap();
        let dir = home.path().to_owned();
        let (vault, process_server) = (free_address(), free_address());
        lifeboat(&["authority", "create", "--name", "bench", &text(&dir.join("authority"))]);
        issue(&dir, "vault", "vault", &["--host", "127.0.0.1"]);
        issue(&dir, "process-server", "gateway", &["--name", "bench", "--host", "127.0.0.1"]);
        issue(&dir, "operator", "operator", &["--name", "bench"]);
        let settings = format!(
            "listen = \"{vault}\"\ncredentials = \"{}\"\nstate = \"{}\"\n[nbd]\nsocket_directory = \"{}\"\n\
             [machines]\nstop_with_vault = true\ncpus_max = {MACHINES_MAX}\n",
            text(&dir.join("vault")),
            text(&dir.join("vault-state")),
            text(&dir.join("nbd"))
        );
        fs::write(dir.join("vault.toml"), settings).unwrap();
        let settings = format!(
            "name = \"bench\"\nlisten = \"{process_server}\"\nvault = \"https://{vault}\"\ncredentials = \"{}\"\nstate = \"{}\"\n\
             [spool]\nwarn_below_percent = 3\ncritical_below_percent = 2\nthrottle_below_percent = 1\n",
            text(&dir.join("gateway")),
            text(&dir.join("gateway-state"))
        );
        fs::write(dir.join("process-server.toml"), settings).unwrap();
        let children = Vec::new();
        let mut roles = Self { process_server, process_server_pid: 0, vault_pid: 0, vault, home, children };
        roles.vault_pid = roles.start_role("vault", vault);
        roles.process_server_pid = roles.start_role("process-server", process_server);
        roles
    }

    fn start_role(&mut self, role: &str, address: SocketAddr) -> u32 {
        let log = File::create(self.dir().join(format!("{role}.log"))).unwrap();
        let child = Command::new(Programs::find().lifeboat)
            .args([role, "serve", "--config"])
            .arg(self.dir().join(format!("{role}.toml")))
            .env("LIFEBOAT_STOP_WITH_PARENT", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let pid = child.id();
        self.children.push(child);
        wait_for(role, || TcpStream::connect(address).ok());
        pid
    }

    /// Issues the certificate of a new agent; answers where it is.
    pub fn new_agent(&self, number: usize) -> PathBuf {
        self.new_agent_named(&number.to_string())
    }

    /// Issues the certificate of a new agent; answers where it is.
    pub fn new_agent_named(&self, name: &str) -> PathBuf {
        let name = format!("agent-{name}");
        issue(self.dir(), "agent", &name, &[]);
        self.dir().join(name)
    }

    /// Runs a command of `lifeboat` that must succeed, and answers its JSON.
    pub fn json(&self, words: &[&str]) -> Value {
        let (site, credentials) = (format!("https://{}", self.vault), text(&self.dir().join("operator")));
        // Which site was used last is remembered there, and is not to be this one.
        let (home, program) = (format!("HOME={}", text(self.dir())), text(&Programs::find().lifeboat));
        let before =
            [home.as_str(), &program, "--output", "json", "--site", &site, "--credentials", &credentials];
        let all: Vec<_> = before.iter().chain(words).copied().collect();
        serde_json::from_str(&run("env", &all)).unwrap()
    }

    pub fn dir(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Roles {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for role in ["vault", "process-server"] {
                let log = fs::read_to_string(self.dir().join(format!("{role}.log"))).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                eprintln!("--- {role}\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
            }
        }
    }
}

fn issue(dir: &Path, role: &str, name: &str, more: &[&str]) {
    let (authority, to) = (text(&dir.join("authority")), text(&dir.join(name)));
    let words = ["certificate", "issue", "--authority", &authority, "--for", role, &to];
    lifeboat(&words.iter().chain(more).copied().collect::<Vec<_>>());
}

fn lifeboat(words: &[&str]) -> String {
    run(&text(&Programs::find().lifeboat), words)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}
